import qdx


@qdx.register("analysis", "ties", title="Nearly tied rows")
def ties(tree, below: float = 0.1):
    """Share of replayed rows whose two greatest logits are nearer than `below` nat, which errors flip."""
    gap = -tree["replay/top_logit"].diff("rank").isel(rank=0, drop=True)
    share = (gap < below).where(tree["replay/captured"]).mean(["repeat", "reference", "position"])
    share.attrs = {"units": "1", "long_name": f"share of rows with a gap under {below} nat"}
    labels = [str(label) for label in share["config"].values]
    title = f"Gap under {below} nat"
    chart = qdx.charts.bars("ties", title, labels, share.values, what="share", phase="replay")
    return qdx.analysis.Section("ties", "Nearly tied rows", share.to_dataset(name="share"), blocks=[chart])
