"""Names of the ways in which engines make noise of a seed: of an engine's version, and of its sampler.

How noise is made changes between versions, so it is looked up by a name that the verifier gives
(``prompts.noise``), and never guessed. Each was read in that version's source:

- ``vllm-0.33.0-v2`` and ``vllm-0.32.0-v2``: vLLM's second model runner (``v1/worker/gpu/sample/gumbel.py``),
  Murmur3 x86_32 over seed, position of the *input* token and token id, read as a uniform number of 32 bits.
- ``vllm-cpu-0.32.0-v1``: the first runner on a CPU. The request's generator (Mersenne Twister) gives a number
  a token, from which SplitMix64 makes the noise of every token id (``csrc/cpu/sampling_kernels.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping

from qdx.errors import QdxError, nearest

# Name → how the fingerprint of such an engine begins.
ENGINES: Mapping[str, str] = {
    "vllm-0.33.0-v2": "vllm-0.33.0",
    "vllm-0.32.0-v2": "vllm-0.32.0",
    "vllm-cpu-0.32.0-v1": "vllm-0.32.0",
}


def require_known(name: str) -> None:
    """Refuse a name that is not known here.

    Raises
    ------
    QdxError
    """
    if name not in ENGINES:
        raise QdxError(
            f"prompts.noise={name}: the noise of that engine is not known here, only {', '.join(ENGINES)}"
            f"{nearest(name, list(ENGINES))}: leave prompts.noise out, and seeds are not used"
        )


def check_engine(name: str, fingerprint: str) -> None:
    """Refuse the noise of another version than the records' fingerprint names.

    Parameters
    ----------
    name : str
    fingerprint : str
        Such as ``vllm-0.33.0-tp2-523d7c03``. It is empty where it is not stated, so that the verifier's word
        is all there is.

    Raises
    ------
    QdxError
    """
    require_known(name)
    wanted = ENGINES[name]
    if fingerprint and fingerprint != wanted and not fingerprint.startswith(f"{wanted}-"):
        raise QdxError(
            f"prompts.noise={name}: the records' system_fingerprint is {fingerprint[:60]!r}, not one of "
            f"{wanted} (known: {', '.join(ENGINES)}): name the noise of that version, or leave prompts.noise "
            "out"
        )
