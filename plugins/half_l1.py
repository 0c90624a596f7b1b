import qdx


@qdx.register("metric", "half_l1")
def half_l1(p, q, scale: float = 1.0):
    """Half the L1 distance of the two distributions, 0…1."""
    return scale * 0.5 * (p.exp() - q.exp()).abs().sum(-1)
