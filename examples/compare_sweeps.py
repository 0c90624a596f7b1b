"""Compare two sweeps, such as one from each of two machines: which rows are bit-equal, how far are others?

    python examples/compare_sweeps.py outputs/prover outputs/verifier

Works on sweep.nc alone: hashes, logits of the targets and normalizers are in it for every captured row.
"""

from __future__ import annotations

import argparse

import numpy as np
import xarray as xr

import qdx
from qdx.errors import QdxError

PHASES = ("prefill", "replay")  # free decode goes its own way in each sweep


def compare(one: xr.DataTree, other: xr.DataTree, phase: str) -> xr.Dataset:
    """Count the rows that both captured and those that are bit-equal, and find the greatest difference.

    Returns
    -------
    xarray.Dataset
        Over (config): ``rows``, ``equal`` and ``greatest`` (of the targets' log-probabilities, nats).
    """
    names = ["captured", "row_hash", "token_id", "target_logit", "logsumexp"]
    first = [tree[phase].to_dataset()[names].isel(repeat=0, drop=True) for tree in (one, other)]
    a, b = xr.align(*first, join="inner", exclude=["vocab"])
    rows = a["captured"] & b["captured"] & (a["token_id"] == b["token_id"])
    difference = np.abs(a.qdx.logprob() - b.qdx.logprob()).where(rows)
    dims = ["reference", "position"]
    return xr.Dataset(
        {
            "rows": rows.sum(dims),
            "equal": (rows & (a["row_hash"] == b["row_hash"])).sum(dims),
            "greatest": difference.max(dims),
        }
    )


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs=2, help="two sweep folders, or their sweep.nc")
    one, other = (qdx.open(path) for path in parser.parse_args().sweeps)
    ids = [tree["references/token_ids"] for tree in (one, other)]
    if not ids[0].equals(ids[1]):
        raise QdxError("the sweeps have different references: run both with the same prompts and tokenizer")
    print(f"{'config':<20} {'phase':<8} {'bit-equal rows':>16} {'greatest |Δ ln p|':>18}")
    for phase in PHASES:
        for config, at in compare(one, other, phase).groupby("config"):
            equal = f"{int(at['equal'].sum())} of {int(at['rows'].sum())}"
            print(f"{config!s:<20} {phase:<8} {equal:>16} {float(at['greatest'].max()):>13.3g} nat")


if __name__ == "__main__":
    main()
