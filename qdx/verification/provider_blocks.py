"""Providers side by side: one row for each producer of records, whatever tests its answers allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.document.blocks import Block, Cell, Details, Table
from qdx.document.charts import bars
from qdx.document.format import DASH, probability
from qdx.verification.cases import Evidence
from qdx.verification.fingerprint_stated import compared
from qdx.verification.replays import Replays

LEAST_P = 1e-12  # of the tests of drawn tokens
MOST_BARS = 40


def provider_blocks(data: Replays, evidence: Evidence, result: xr.Dataset, at: Sequence[int]) -> list[Block]:
    """Return a table and a chart over the providers of records; nothing where there is none.

    Parameters
    ----------
    data : Replays
    evidence : Evidence
    result : xarray.Dataset
        Of `claims.verify`.
    at : sequence of int
        The claimed config of every producer; −1: it was not replayed.
    """
    rows: list[list[Cell]] = []
    names: list[str] = []
    values: list[float] = []
    for d, (record, claim) in enumerate(zip(data.records_D, evidence.claims, strict=True)):
        if record is None:
            continue
        drawn = None if claim is None else claim.test("drawn tokens")
        p = None if drawn is None or drawn.p is None else float(drawn.p)
        seconds = record.seconds_R[np.isfinite(record.seconds_R)]
        share = (
            float(result["false_share_at_least"].values[d]) if "false_share_at_least" in result else np.nan
        )
        own = data.class_C[max(0, at[d])]
        rows.append(
            [
                data.producers[d],
                str(result["claim"].values[d]) or DASH,
                str(result["verdict"].values[d]),
                str(result["answer"].values[d]) if "answer" in result else DASH,
                DASH if p is None else _evidence(p),
                probability(float(result["p_test_holm"].values[d])),
                f"{share:.0%}" if p is not None and np.isfinite(share) else DASH,
                record.prompt_more or DASH,
                float(np.median(seconds)) if len(seconds) else np.nan,
                compared(record.fingerprint, own.get("backend", ""), own.get("backend_version", "")),
            ]
        )
        if p is not None:
            names.append(data.producers[d])
            values.append(-np.log10(max(p, LEAST_P)))
    if not rows:
        return []
    head = [
        "provider", "claim", "verdict", "fits", "E", "p Holm", "false ≥", "prompt +", "median s",
        "system_fingerprint",
    ]  # fmt: skip
    caption = (
        "Providers side by side: the config that fits, the greatest E against the claim by drawn tokens, the "
        "share of false answers at least, prompt tokens that the provider counts beside those replayed, "
        "seconds an answer took, and how its stated build compares with the engine here (which decides "
        "nothing)"
    )
    blocks: list[Block] = [Table(caption, head, rows, 4)]
    if len(names) > 1:
        blocks.append(
            bars(
                "providers_e",
                "Evidence against each provider's claim",
                names[:MOST_BARS],
                values[:MOST_BARS],
                what="log₁₀ of the greatest E (drawn tokens)",
                note="A claim is refuted by this test alone where E reaches the number of claims and tests "
                "over α; E is shown up to 10¹².",
            )
        )
    return [Details("Providers side by side", blocks)] if len(rows) > 1 else blocks


def _evidence(p: float) -> str:
    """The greatest E that a p-value of drawn tokens stands for: p = 1 / E."""
    e = 1 / max(p, LEAST_P)
    return f"≥ 10^{round(np.log10(e))}" if p <= LEAST_P else f"{e:.3g}"
