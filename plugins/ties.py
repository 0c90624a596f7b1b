import qdx


@qdx.register("analysis", "ties", title="Nearly tied rows")
def ties(tree, below: float = 0.1):
    """Share of replayed rows whose two greatest logits are nearer than `below` nat, which errors flip."""
    top = tree["replay/top_logit"]
    near = (top.isel(rank=0) - top.isel(rank=1) < below).where(tree["replay/captured"])
    share = near.mean(["repeat", "reference", "position"]).rename("share")
    share.attrs = {"units": "1", "long_name": f"share of rows with a gap under {below} nat"}
    said = {"replay": "\n".join(f"  {one['config'].item()}: {one.item():.1%}" for one in share)}
    bars = "".join(f'<rect y="{9 * i}" width="{v:.1%}" height="6"/>' for i, v in enumerate(share.values))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" height="{9 * len(share)}" fill="#0072b2">{bars}</svg>'
    return qdx.analysis.Section("ties", "Nearly tied rows", share.to_dataset(), said, {"ties": svg})
