"""The weight formats of GGUF files, and the dataclass of ``backend=llamacpp``, which runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdx.errors import QdxError, nearest

# As llama.cpp calls them, and how a file states them: its ``general.file_type``, of enum llama_ftype.
FILE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_1": 9,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "iq3_m": 27,
    "iq3_xxs": 23,
    "q2_k": 10,
    "iq2_m": 29,
}
FLASH_ATTENTION: Mapping[str, int] = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type


@dataclass
class LlamacppOptions:
    """Options of `qdx.backends.llamacpp.LlamacppBackend`.

    Attributes
    ----------
    threads : int, optional
        As many as there are cores when None.
    n_ubatch : int
        Tokens of a prompt that are computed together, llama.cpp's ``--ubatch-size``: rows depend on it.
    repack : bool
        Let llama.cpp lay weights out anew for this processor's instructions, which runs other kernels
        (``--no-repack`` of its programs turns it off).
    flash_attention : {"auto", "on", "off"}
        ``--flash-attn`` of its programs.
    """

    threads: int | None = None
    n_ubatch: int = 512
    repack: bool = True
    flash_attention: str = "auto"

    def __post_init__(self) -> None:
        for name in ("threads", "n_ubatch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QdxError(f"backend.{name}={value}: must be at least 1")
        if self.flash_attention not in FLASH_ATTENTION:
            raise QdxError(
                f"backend.flash_attention={self.flash_attention}: one of {', '.join(FLASH_ATTENTION)}"
                f"{nearest(self.flash_attention, FLASH_ATTENTION)}"
            )


@dataclass(kw_only=True)
class LlamacppBackend(LlamacppOptions):
    """The node of the config group: the options, and what every node has."""

    _target_: str
    name: str
