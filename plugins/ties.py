import qdx


@qdx.register("analysis", "ties", title="Nearly tied rows")
def ties(tree, below: float = 0.1):
    """Share of replayed rows whose two greatest logits are nearer than `below` nat, which errors flip."""
    top = tree["replay/top_logit"]
    near = (top.isel(rank=0) - top.isel(rank=1) < below).where(tree["replay/captured"])
    share = near.mean(["repeat", "reference", "position"]).rename("share")
    share.attrs = {"units": "1", "long_name": f"share of rows with a gap under {below} nat"}
    said = "\n".join(f"  {one['config'].item()}: {one.item():.1%}" for one in share)
    return qdx.analysis.Section("ties", "Nearly tied rows", share.to_dataset(), {"replay": said})
