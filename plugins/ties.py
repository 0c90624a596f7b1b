import qdx


@qdx.register("analysis", "ties", title="Nearly tied rows")
def ties(tree, below: float = 0.1):
    """Share of replayed rows whose two greatest logits are nearer than `below`: small errors flip those."""
    from qdx.analysis import Section

    top = tree["replay/top_logit"]
    near = (top.isel(rank=0) - top.isel(rank=1) < below).where(tree["replay/captured"])
    share = near.mean(["repeat", "reference", "position"]).rename("share")
    share.attrs = {"units": "1", "long_name": f"share of rows with a gap under {below} logits"}
    said = [f"  {config}: {float(share.sel(config=config)):.1%}" for config in share["config"].values]
    lines = [f"  Rows whose two greatest logits are nearer than {below}:", *said]
    text = "".join(f'<text y="{16 * i + 12}">{line}</text>' for i, line in enumerate(said))
    box = f'viewBox="0 0 300 {16 * len(said)}" font-size="12" fill="currentColor"'
    figures = {"ties": f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{text}</svg>'}
    return Section("ties", "Nearly tied rows", share.to_dataset(), {"replay": "\n".join(lines)}, figures)
