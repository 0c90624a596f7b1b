"""Define the contract of a backend, which runs a model, and the facts that it states about what it loaded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qdx import plugins
from qdx.errors import QdxError
from qdx.kernel_names import is_simulated, plain_kernel

if TYPE_CHECKING:
    from qdx.capture import Recorder
    from qdx.schema import Quant

ANY = "any"  # the kernel of a config that records what the engine chooses


@dataclass(frozen=True)
class Facts:
    """State what a backend really loaded, as far as it can differ from what was asked.

    Attributes
    ----------
    kernel_class : Mapping of str to str
        Layer type (``q_proj``, ``lm_head``, …) to the engine's own class name.
    kernel : Mapping of str to str
        Layer type to the normalized kernel name; a numerical model's begins with ``model:``.
    quantized : frozenset of str
        The layer types whose weights are quantized.
    dtype : str
        Of activations and logits.
    vocab : int
        Logits in a row.
    hidden : int
        Values of a hidden state; 0 when the backend gives none.
    engine, engine_version : str
    gpu : str
        Name of the card, empty on a CPU.
    compute_capability : str
        Such as ``9.0``; empty on a CPU.
    sm_count : int
        Of the card, or of the card that a numerical model imitates; 0 when neither.
    eos_token_ids : frozenset of int
        Tokens that would have ended a generation.
    remedy : str
        What the kernel that was asked for needs and how it is chosen; part of `require`'s error.
    settings : Mapping of str to str
        Observed values of the backend's options, by the names that they have in the config.
    sampling : str
        How `Backend.generate` chooses a token, as `qdx.backends.sampling` states it; empty: not stated, and
        then no verdict holds the generated tokens for plain greedy.
    attrs : Mapping
        What else the engine settled; becomes root attributes of the results.
    """

    kernel_class: Mapping[str, str]
    kernel: Mapping[str, str]
    quantized: frozenset[str]
    dtype: str
    vocab: int
    engine: str
    engine_version: str
    gpu: str = ""
    compute_capability: str = ""
    sm_count: int = 0
    hidden: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    remedy: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    sampling: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Return whether any kernel is a numerical model of the real one."""
        return any(is_simulated(name) for name in self.kernel.values())

    @property
    def observed_kernel(self) -> str:
        """The kernel of the quantized layers, or of all when none is; several are joined by ``+``."""
        layers = self.quantized or frozenset(self.kernel)
        return "+".join(sorted({self.kernel[layer] for layer in layers}))


def require(quant: Quant, facts: Facts) -> None:
    """Stop when the kernel that was loaded is not the one that was asked for; ``any`` takes what there is.

    Raises
    ------
    QdxError
        Naming the layer types, what was asked, what loaded, and what the kernel that was asked for needs.
    """
    if quant.kernel == ANY:
        return
    layers = sorted(facts.quantized or facts.kernel)
    other = [layer for layer in layers if plain_kernel(facts.kernel[layer]) != quant.kernel]
    if other:
        loaded = ", ".join(f"{layer}: {facts.kernel[layer]}" for layer in other)
        why = f" ({facts.remedy})" if facts.remedy else ""
        raise QdxError(
            f"quant={quant.name} asks for kernel {quant.kernel}, {facts.engine} loaded {loaded}{why}"
        )


def identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a backend, beside its options, can change what is computed.

    Parameters
    ----------
    node : Mapping
        ``_target_`` and options.

    Returns
    -------
    dict
        What the backend's static method ``identity(**options)`` says, such as the engine's version, and for a
        plug-in the SHA-256 of its source file.
    """
    member = plugins.build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    chosen = {key: value for key, value in node.items() if key != "_target_"}
    facts: dict[str, Any] = member.identity(**chosen) if hasattr(member, "identity") else {}
    if not member.__module__.startswith("qdx."):
        source = Path(inspect.getfile(member))
        facts = {**facts, "backend_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    return facts


def rehearse(node: Mapping[str, Any], **asked: Any) -> None:
    """Let a backend refuse, before the first job of a sweep, what a job of its own would fail on.

    Parameters
    ----------
    node : Mapping
        ``_target_`` and options.
    **asked
        ``checkpoint``, ``quant``, ``dtype`` and ``batch_size`` of a job. A backend that can tell early has a
        static method ``rehearse`` that takes them and its options.

    Raises
    ------
    QdxError
    """
    member = plugins.build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    chosen = {key: value for key, value in node.items() if key != "_target_"}
    if hasattr(member, "rehearse"):
        member.rehearse(**chosen, **asked)


class Backend(Protocol):
    """Runs one config's model over batches of references and hands every logits row to a recorder.

    ``position`` is the index of the token that a row predicts, from 0 at the start of a reference of length
    L::

        input       t_0  t_1  …  t_{L-1} | g_0  g_1  …
        row predicts 1    2   …    L     | L+1  L+2  …
        phase        prefill ………………………… | decode (g = own tokens), replay (g = shared continuation)

    One prefill serves the generation and the replay that follow it: both start from its cache. An engine that
    computes a prefill for every request is a `OnePass`, too.
    """

    def observe(self) -> Facts:
        """Return what is really loaded."""
        ...

    def prefill(self, batch: list[list[int]], recorder: Recorder) -> None:
        """Run the references of a batch together and record the wanted rows of each.

        Parameters
        ----------
        batch : list of list of int
            Token ids of each reference.
        recorder : Recorder
            ``wanted(item)`` says which positions to pass to ``rows``.
        """
        ...

    def generate(self, batch: list[list[int]], count: int, recorder: Recorder) -> list[list[int]]:
        """Generate greedily after the last `prefill` of the same batch; the end-of-sequence token is ignored.

        Returns
        -------
        list of list of int
            `count` token ids for each reference; the first comes from prefill's last row, and the rows of the
            others are recorded as decode.
        """
        ...

    def replay(self, batch: list[list[int]], forced: list[list[int]], recorder: Recorder) -> None:
        """Step through pinned tokens with the decode kernels, after the last `prefill` of the same batch.

        Parameters
        ----------
        forced : list of list of int
            T ≥ 2 tokens for each reference, each its own number of them; the row after token j predicts
            token j + 1, so T − 1 rows are recorded.
        """
        ...

    def reseed(self, seed: int) -> None:
        """Start the sequence of everything drawn (the order of atomic additions) anew."""
        ...


@runtime_checkable
class OnePass(Protocol):
    """A backend whose every request computes its own prefill: the rows of both phases come from one call."""

    def prefill_generate(
        self, batch: list[list[int]], count: int, recorder: Recorder, begin: Callable[[str], None]
    ) -> list[list[int]]:
        """Run a batch, generate greedily and record the rows of both phases.

        Parameters
        ----------
        begin : callable
            To be called with ``"prefill"``, then with ``"decode"``, before the rows of that phase are handed
            over.

        Returns
        -------
        list of list of int
            `count` token ids for each reference.
        """
        ...
