"""Find the replayed configs that a provider's name of a weight format means, whatever their kernel.

A provider says "awq", "int4" or "fp8", and not which kernel, card or checkpoint. So its claim is a composite
one: it is refuted when every config that it may mean is refuted, and p is the greatest over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# What marketplaces call it (OpenRouter's list of quantizations, and spellings of it) → formats of configs;
# ``none`` with a data type means unquantized weights of that type. bitsandbytes has 8 bits or 4 of two kinds.
NAMES: Mapping[str, Sequence[str]] = {
    "int4": ("awq", "gptq", "w4a16", "bitsandbytes", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"),
    "int8": ("w8a16", "bitsandbytes", "q8_0"),
    "fp4": ("bitsandbytes",),
    "fp8": ("fp8",),
    "fp16": ("none float16", "f16"),
    "bf16": ("none bfloat16", "bf16"),
    "fp32": ("none float32", "f32"),
}
SPELLINGS: Mapping[str, str] = {
    "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "w4a16": "int4", "4bit": "int4",
    "w8a16": "int8", "8bit": "int8", "fp8_e4m3": "fp8", "e4m3": "fp8", "nf4": "fp4",
}  # fmt: skip


def meant(claim: str, labels: Sequence[str], formats: Sequence[str], dtypes: Sequence[str]) -> list[int]:
    """Return the configs that a claim of a provider may mean.

    Parameters
    ----------
    claim : str
        A config's format (``awq``: of any kernel), a name of `NAMES` or `SPELLINGS`, or the label of one
        config, which then stands for itself alone (``awq_marlin``).
    labels, formats, dtypes : sequence of str
        Of the configs that were replayed; "" where a file states none.

    Returns
    -------
    list of int
        Empty where none was replayed.

    Examples
    --------
    >>> configs = ["none", "awq", "awq_marlin", "gptq"]
    >>> formats, dtypes = ["none", "awq", "awq", "gptq"], ["float16"] * 4
    >>> meant("awq", configs, formats, dtypes), meant("INT4", configs, formats, dtypes)
    ([1, 2], [1, 2, 3])
    >>> meant("awq_marlin", configs, formats, dtypes), meant("bf16", configs, formats, dtypes)
    ([2], [])
    """
    name = claim.lower().replace("-", "_")
    own = [c for c, one in enumerate(formats) if one and one.lower() == name]
    if own:
        return own
    if claim in labels:
        return [labels.index(claim)]
    wanted = NAMES.get(SPELLINGS.get(name, name), ())
    pairs = zip(formats, dtypes, strict=True)
    return [c for c, (one, dtype) in enumerate(pairs) if one in wanted or f"{one} {dtype}" in wanted]
