"""Name kernels: ``marlin`` is the GPU's, ``model:marlin`` a numerical model of it on a CPU."""

from __future__ import annotations

SIMULATED = "model:"


def simulated(name: str) -> str:
    """Name of the numerical model of a kernel."""
    return SIMULATED + name


def is_simulated(name: str) -> bool:
    """Return whether a numerical model is meant."""
    return name.startswith(SIMULATED)


def plain_kernel(name: str) -> str:
    """Kernel name without the prefix that marks a numerical model of it."""
    return name.removeprefix(SIMULATED)


def another_kernel(requested: str, observed: str) -> bool:
    """Return whether another kernel was loaded than asked for; ``any`` asks for none, "" was not observed."""
    return (
        requested not in ("", "any") and observed != "" and plain_kernel(requested) != plain_kernel(observed)
    )


def pair_type(format_a: str, format_b: str, kernel_a: str, kernel_b: str) -> str:
    """Name what two configs differ in; dense weights (format none) are a type of their own.

    What an imported file does not state is said to be so, and not taken to be the same.
    """
    if not (format_a and format_b):
        return "format not stated"
    if (format_a == "none") != (format_b == "none"):
        return "vs dense"
    if not (kernel_a and kernel_b):
        kernel = "kernel not observed"
    else:
        kernel = "same kernel" if plain_kernel(kernel_a) == plain_kernel(kernel_b) else "other kernel"
    return f"{'same' if format_a == format_b else 'other'} format, {kernel}"
