import qdx


@qdx.register("analysis", "ties", title="Nearly tied rows")
def ties(tree, below: float = 0.1):
    """Share of replayed rows whose two greatest logits are nearer than `below` nat, which errors flip."""
    gap = -tree["replay/top_logit"].diff("rank").isel(rank=0, drop=True)
    share = (gap < below).where(tree["replay/captured"]).mean(["repeat", "reference", "position"])
    share.attrs = {"units": "1", "long_name": f"share of rows with a gap under {below} nat"}
    rows = [[str(one["config"].item()), f"{one.item():.1%}"] for one in share]
    table = qdx.analysis.Table(f"Gap under {below} nat", ["config", "share"], rows, phase="replay")
    bars = "".join(f'<rect y="{9 * i}" width="{v:.1%}" height="6"/>' for i, v in enumerate(share.values))
    chart = qdx.analysis.Chart("ties", f'<svg height="{9 * len(share)}" fill="#0072b2">{bars}</svg>', table)
    return qdx.analysis.Section("ties", "Nearly tied rows", share.to_dataset(name="share"), blocks=[chart])
