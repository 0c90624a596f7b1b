"""By how much honest kernels of one checkpoint may differ more than the known ones do.

A provider of records states neither kernel nor card, and known answers come from one or a few of them. An
honest provider with another kernel then is a little further from the replay, or has another near-tie decided
otherwise. Means over many tokens show even that: with the scores alone, an honest kernel whose distances are
1.3 times those of the known ones is refuted as soon as the answers are long enough. So the tests of records
against known answers count only what is beyond these allowances. Formats are far beyond them.

Measured (docs/results/evidence.csv and README of docs/results): mean squared differences of kernels of one
checkpoint were between 1.1e-4 and 1.8e-4 nat² on the demo model, 8-bit rounding of its weights has 1.6e-2 and
int4 1.4 and more; on H100s the L2 distances of three kernels of one checkpoint were 1.6 to 3.2.
"""

from __future__ import annotations

from qdx.verification.likelihood import MANTISSA

# Of a mean squared difference: twice the distance.
FACTOR = 4.0
# Nat by which two honest kernels in float16 may differ in a logit: 0.01 to 0.05 were seen.
LOGIT = 0.05
_FLOAT16 = 10  # bits of its mantissa


def margin_allowed(dtype: str) -> float:
    """Return by how much a token may fall short of the greatest logit here, and be an honest kernel's choice.

    Parameters
    ----------
    dtype : str
        Of the replay. In bfloat16 kernels differ by eight times as much; a provider of a wider type here may
        run a narrower one.

    Returns
    -------
    float
        Nat: both logits may be off.

    Examples
    --------
    >>> margin_allowed("float16"), margin_allowed("float32"), margin_allowed("bfloat16")
    (0.1, 0.1, 0.8)
    """
    bits = min(MANTISSA.get(dtype, _FLOAT16), _FLOAT16)
    return float(2 * LOGIT * 2.0 ** (_FLOAT16 - bits))
