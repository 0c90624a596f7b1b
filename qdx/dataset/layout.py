"""Define what a qdx file holds: every group, variable, dimension, dtype, unit and meaning, as one table.

The recorder creates files from this table, the merge concatenates by it, and the tests compare files with
it, so that a variable is described in one place only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# 2: runs state sampling, libraries, switches and the processes of their repeats (`qdx.dataset.lacking`).
SCHEMA_VERSION = 2
READABLE = (1, 2)
PHASES = ("prefill", "decode", "replay")
RECORDS = "records"  # kind of a file that was made of other programs' records: it has tokens, and no rows
REPORT_ORDER = ("prefill", "replay", "decode")  # two paths of shared tokens first, then each config's own
OWN_PHASES = ("prefill", "decode")  # of what a producer computed for herself
REGIONS = ("prefix", "content", "suffix", "output")
ROW_DIMS = ("config", "repeat", "reference", "position")

# HDF5 compresses and caches whole chunks: larger ones than this cost memory, smaller rows than `ROW_CHUNK`
# cost an index entry each.
ROW_CHUNK = 64 * 1024
CHUNK_LIMIT = 4 * 1024 * 1024


class ReferenceLike(Protocol):
    """Name what this layer reads of a `qdx.prompts` reference."""

    @property
    def name(self) -> str: ...
    @property
    def token_ids(self) -> NDArray[np.int32]: ...
    @property
    def prefix_length(self) -> int: ...
    @property
    def content_length(self) -> int: ...
    @property
    def suffix_length(self) -> int: ...
    @property
    def continuation(self) -> NDArray[np.int32]: ...
    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def pages(self) -> str: ...
    @property
    def token_offset(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Producer:
    """Whoever made the transcripts that a verifier replays.

    Attributes
    ----------
    name : str
        Label of the producer's config.
    token_ids : array of int32 (reference, output_token)
        What it generated after each reference; −1 after the end of a shorter transcript.
    coords : Mapping
        Value of every coordinate of `CONFIG_COORDS`.
    samplers : array of float64 (reference, 4), optional
        Temperature, top-k, top-p and min-p that each transcript was drawn with; NaN for one that was not
        drawn, or whose record leaves open how. None: no transcript was drawn.
    noise : str
        How the engine made its noise from a seed, see `qdx.capture.noise.scheme`; "": nobody says.
    seeds : tuple of int or None
        Seed of each transcript, of which its noise was made; None: not stated. Empty: of none.
    """

    name: str
    token_ids: NDArray[np.int32]
    coords: Mapping[str, Any]
    samplers: NDArray[np.float64] | None = None
    noise: str = ""
    seeds: tuple[int | None, ...] = ()

    def length(self, reference: int) -> int:
        """Return the number of tokens of a transcript."""
        return int((self.token_ids[reference] >= 0).sum())

    def transcripts(self, references: Sequence[int]) -> list[list[int]]:
        """Return the tokens of some transcripts, each as long as it is."""
        return [self.token_ids[r, : self.length(r)].tolist() for r in references]


@dataclass(frozen=True)
class Variable:
    """One row of the table.

    Attributes
    ----------
    name : str
    dims : tuple of str
    dtype : str
        ``"str"`` (characters in the file), ``"bool"`` (int8 in the file, as xarray has it) or a numpy code.
    units : str
        "1" or "nat". Logits are in nat: less their logsumexp they are log-probabilities.
    long_name : str
    fill : int, float or str
        What stands where nothing was captured. Only floats carry it as ``_FillValue``: on an integer
        variable that attribute would make xarray read floats.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    fill: Any = ""

    def __post_init__(self) -> None:
        if self.fill == "" and self.dtype != "str":
            object.__setattr__(self, "fill", {"f": np.nan, "i": -1, "u": 0, "b": 0}[self.dtype[0]])

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of the variable in a file."""
        return {"units": self.units, "long_name": self.long_name}


def _table(*rows: Variable) -> dict[str, Variable]:
    return {row.name: row for row in rows}


INDEX = _table(
    Variable("config", ("config",), "str", "1", "label of everything that makes an output"),
    Variable("repeat", ("repeat",), "i4", "1", "number of the repeat of the same config and tokens"),
    Variable("reference", ("reference",), "str", "1", "name of the prompt"),
    Variable(
        "position",
        ("position",),
        "i4",
        "1",
        "index of the token that the row predicts, 0 = start of the reference",
    ),
)

CONFIG_COORDS = _table(
    Variable("format", ("config",), "str", "1", "how the weights are stored"),
    Variable("requested_kernel", ("config",), "str", "1", "matmul kernel that was asked for"),
    Variable("observed_kernel", ("config",), "str", "1", "matmul kernel that the engine loaded"),
    Variable("dtype", ("config",), "str", "1", "data type of the activations and of the logits"),
    Variable("model", ("config",), "str", "1", "name of the model"),
    Variable("backend", ("config",), "str", "1", "engine that ran the model"),
    Variable("backend_version", ("config",), "str", "1", "version of that engine"),
    Variable("batch_size", ("config",), "i4", "1", "references that were run together"),
    Variable("gpu", ("config",), "str", "1", "name of the GPU"),
    Variable("compute_capability", ("config",), "str", "1", "CUDA compute capability of the GPU"),
    Variable("sm_count", ("config",), "i4", "1", "streaming multiprocessors of the GPU"),
    Variable(
        "simulated", ("config",), "bool", "1", "whether the kernel is a numerical model of a GPU kernel"
    ),
)


SETTING = "backend_"  # begins the name of the coordinate of a backend's option


def setting_names(variables: Iterable[object]) -> list[str]:
    """Return which names of variables are coordinates of a backend's options."""
    return [name for name in map(str, variables) if name.startswith(SETTING) and name not in CONFIG_COORDS]


def settings(names: Iterable[str]) -> dict[str, Variable]:
    """Return the coordinates of a backend's options, ``backend_<option>``, as text.

    They differ from backend to backend; a config whose backend has no such option, or whose file is older,
    holds an empty text.

    Raises
    ------
    ValueError
        For an option whose coordinate is one of `CONFIG_COORDS`: ``version``.
    """
    found = _table(
        *(
            Variable(f"{SETTING}{name}", ("config",), "str", "1", f"backend.{name} as the engine settled it")
            for name in names
        )
    )
    if taken := found.keys() & CONFIG_COORDS.keys():
        raise ValueError(
            f"a backend's settings cannot be called {sorted(taken)}: coordinates of all backends"
        )
    return found


REGION = Variable(
    "region",
    ("reference", "position"),
    "str",
    "1",
    "part of the prompt that the predicted token is in; empty where the reference has no such row",
)

PHASE = _table(
    Variable("captured", ROW_DIMS, "bool", "1", "whether this row was captured"),
    Variable(
        "token_id", ROW_DIMS, "i4", "1", "id of the token that is at the position; -1 where not captured"
    ),
    Variable("target_logit", ROW_DIMS, "f4", "nat", "logit of token_id"),
    Variable(
        "target_rank",
        ROW_DIMS,
        "i4",
        "1",
        "number of logits that are strictly greater than target_logit; -1 where not captured",
    ),
    Variable(
        "logsumexp",
        ROW_DIMS,
        "f8",
        "nat",
        "logarithm of the sum of the exponentials of all logits of the row",
    ),
    Variable(
        "row_hash",
        ROW_DIMS,
        "u8",
        "1",
        "multilinear hash of the bit patterns of all logits of the row, for equality",
    ),
    Variable("sketch", (*ROW_DIMS, "component"), "f4", "nat", "random projection of the centred logits"),
    Variable("top_id", (*ROW_DIMS, "rank"), "i4", "1", "ids of the greatest logits; ties by lowest id"),
    Variable("top_logit", (*ROW_DIMS, "rank"), "f4", "nat", "the greatest logits"),
    Variable(
        "logit",
        (*ROW_DIMS, "vocab"),
        "f4",
        "nat",
        "logits of the whole vocabulary, exactly as the model's data type holds them",
    ),
)
HIDDEN = Variable(
    "hidden",
    (*ROW_DIMS, "element"),  # a variable of its dimension's name would be an index
    "f4",
    "1",
    "last normed hidden state, which the output layer turns into the row of logits",
)
WIDE = {"logit": PHASE["logit"], "hidden": HIDDEN}  # full rows: one of them is kept, in run.nc only

PRODUCER = Variable("producer", ("producer",), "str", "1", "label of the config that made the transcripts")
PRODUCER_COORDS = _table(
    *(
        replace(
            row, name=f"producer_{name}", dims=("producer",), long_name=f"of the producer: {row.long_name}"
        )
        for name, row in CONFIG_COORDS.items()
    )
)

# Prefill is the same whoever made the transcripts, and its last row predicts the first token of each.
FIRST = _table(
    Variable(
        "first_token_id",
        ("config", "repeat", "producer", "reference"),
        "i4",
        "1",
        "id of the first token of the producer's transcript",
    ),
    Variable(
        "first_logit",
        ("config", "repeat", "producer", "reference"),
        "f4",
        "nat",
        "logit of first_token_id in prefill's last row",
    ),
    Variable(
        "first_rank",
        ("config", "repeat", "producer", "reference"),
        "i4",
        "1",
        "number of logits of prefill's last row that are strictly greater than first_logit",
    ),
)

# What a row says of a token that was drawn from it: of transcripts that state how they were sampled.
DRAWN = _table(
    Variable("drawn_logprob", ROW_DIMS, "f8", "nat", "log-probability of token_id at the stated temperature"),
    Variable(
        "drawn_before",
        ROW_DIMS,
        "f8",
        "1",
        "probability, at that temperature, of the tokens that truncation keeps before token_id",
    ),
    Variable("drawn_kept", ROW_DIMS, "f8", "1", "probability of all tokens that truncation keeps"),
    Variable(
        "drawn_kept_least",
        ROW_DIMS,
        "f8",
        "1",
        "probability of those that it keeps whatever noise of logits moves its edge",
    ),
    Variable("drawn_entropy", ROW_DIMS, "f8", "nat", "entropy of the truncated distribution"),
    Variable("drawn_variance", ROW_DIMS, "f8", "1", "variance of its -log p, in square nat"),
    Variable(
        "drawn_place",
        ROW_DIMS,
        "i4",
        "1",
        "2: truncation keeps token_id, 1: noise of logits could move it in, 0: neither; -1: not drawn",
    ),
    Variable(
        "drawn_margin",
        ROW_DIMS,
        "f8",
        "nat",
        "by how much token_id falls short of the one that the seed would have drawn; NaN: seed or noise not "
        "known",
    ),
    Variable(
        "drawn_other",
        (*ROW_DIMS, "alternative"),
        "f4",
        "nat",
        "log-probability of token_id under other sampling parameters (qdx.capture.densities.ALTERNATIVES)",
    ),
    Variable(
        "drawn_most",
        (*ROW_DIMS, "temperature"),
        "f4",
        "nat",
        "log of the most that an honest producer at other temperatures gives token_id "
        "(qdx.capture.densities.TEMPERATURES)",
    ),
)
FIRST_DRAWN = _table(
    *(
        replace(
            row,
            name=f"first_{name}",
            dims=("config", "repeat", "producer", "reference", *row.dims[len(ROW_DIMS) :]),
            long_name=f"of prefill's last row and first_token_id: {row.long_name}",
        )
        for name, row in DRAWN.items()
    )
)

OUTPUT = _table(
    Variable(
        "token_id",
        ("config", "repeat", "reference", "output_token"),
        "i4",
        "1",
        "ids of the generated tokens",
    ),
    Variable("text", ("config", "repeat", "reference"), "str", "1", "the generated tokens as text"),
    Variable(
        "eos_index",
        ("config", "repeat", "reference"),
        "i4",
        "1",
        "index of the first end-of-sequence token; -1 = none seen",
    ),
)

REFERENCES = _table(
    Variable("token_ids", ("reference", "token"), "i4", "1", "token ids of the prompt; -1 after its end"),
    Variable("length", ("reference",), "i4", "1", "tokens of the prompt"),
    Variable("prefix_length", ("reference",), "i4", "1", "template tokens before the content"),
    Variable("content_length", ("reference",), "i4", "1", "tokens of the content"),
    Variable("suffix_length", ("reference",), "i4", "1", "template tokens after the content"),
    Variable(
        "continuation",
        ("reference", "continuation_token"),
        "i4",
        "1",
        "tokens that follow the content in its source; -1 after their end",
    ),
    Variable("text", ("reference",), "str", "1", "the content as text"),
    Variable("source", ("reference",), "str", "1", "where the content came from"),
    Variable("pages", ("reference",), "str", "1", "pages of the source"),
    Variable("sha256", ("reference",), "str", "1", "SHA-256 of the source"),
    Variable("token_offset", ("reference",), "i4", "1", "index in the source of the content's first token"),
)

LAYERS = _table(
    Variable(
        "kernel_class",
        ("config", "layer_type"),
        "str",
        "1",
        "classes that the engine computes the layers of this type with",
    ),
    Variable(
        "kernel",
        ("config", "layer_type"),
        "str",
        "1",
        "normalized name of the kernel of the layers of this type",
    ),
)
LAYER_TYPE = Variable("layer_type", ("layer_type",), "str", "1", "type of a linear layer of the model")


def conventions(title: str, stated: Mapping[str, Any]) -> dict[str, str]:
    """Return the root attributes that the CF conventions (1.11, 2.6) want of every file.

    Parameters
    ----------
    title : str
    stated : Mapping
        The file's attributes: ``time_utc`` and ``command_line`` make its history.
    """
    history = " ".join(str(stated[name]) for name in ("time_utc", "command_line") if stated.get(name))
    return {"Conventions": "CF-1.11", "title": title, "history": history}


def phase_variables(
    phase: str, *, wide: str = "", producers: bool = False, drawn: bool = False
) -> dict[str, Variable]:
    """Return the variables of a phase.

    Parameters
    ----------
    phase : {"prefill", "decode", "replay"}
    wide : {"logit", "hidden", ""}
        Which full rows are kept.
    producers : bool
        Whether transcripts of producers are replayed.
    drawn : bool
        Whether any of them states how its tokens were drawn.
    """
    kept = {
        name: row for name, row in (PHASE | {"hidden": HIDDEN}).items() if name not in WIDE or name == wide
    }
    if producers and drawn and phase == "replay":
        kept |= DRAWN
    if producers and phase == "replay":
        kept = {name: replace(row, dims=row_dims(phase, True) + row.dims[4:]) for name, row in kept.items()}
    if producers and phase == "prefill":
        kept |= FIRST | (FIRST_DRAWN if drawn else {})
    return kept


def row_dims(phase: str, producers: bool) -> tuple[str, ...]:
    """Return the dimensions that name a row of a phase."""
    return (*ROW_DIMS[:2], "producer", *ROW_DIMS[2:]) if producers and phase == "replay" else ROW_DIMS


def chunk_sizes(variable: Variable, sizes: Mapping[str, int]) -> list[int]:
    """Return the shape of a chunk: one row of the vocabulary, or all positions of a small variable.

    Parameters
    ----------
    variable : Variable
    sizes : Mapping
        Length of every dimension.

    Returns
    -------
    list of int
        One config, repeat, producer and reference; as many positions as keep small rows together (a row of 64
        KiB or more is a chunk by itself; no chunk of several rows exceeds 4 MiB); everything along the last
        dimension.
    """
    chunk = {"config": 1, "repeat": 1, "producer": 1, "reference": 1}
    if "position" in variable.dims:
        width = np.prod(
            [sizes[dim] for dim in variable.dims if dim not in (*ROW_DIMS, "producer")], dtype=np.int64
        )
        row = max(1, int(width)) * item_size(variable)
        fitting = 1 if row >= ROW_CHUNK else CHUNK_LIMIT // row
        chunk["position"] = max(1, min(sizes["position"], fitting))
    return [max(1, min(chunk.get(dim, sizes[dim]), sizes[dim])) for dim in variable.dims]


def item_size(variable: Variable) -> int:
    """Return the bytes of one uncompressed value (16 for a string's heap reference)."""
    return {"str": 16, "bool": 1}.get(variable.dtype) or np.dtype(variable.dtype).itemsize


def reference_arrays(references: Sequence[ReferenceLike]) -> dict[str, NDArray[Any]]:
    """Return the arrays of the group ``/references``, by variable name."""
    length = max(len(r.token_ids) for r in references)
    continuation = max((len(r.continuation) for r in references), default=0)
    ids_FN = np.full((len(references), length), -1, np.int32)
    continuation_FN = np.full((len(references), continuation), -1, np.int32)
    for i, reference in enumerate(references):
        ids_FN[i, : len(reference.token_ids)] = reference.token_ids
        continuation_FN[i, : len(reference.continuation)] = reference.continuation
    arrays: dict[str, NDArray[Any]] = {"token_ids": ids_FN, "continuation": continuation_FN}
    arrays["length"] = np.array([len(r.token_ids) for r in references], np.int32)
    for name in ("prefix_length", "content_length", "suffix_length", "token_offset"):
        arrays[name] = np.array([getattr(r, name) for r in references], np.int32)
    for name in ("text", "source", "pages", "sha256"):
        arrays[name] = np.array([getattr(r, name) for r in references], object)
    return arrays


def region_of(reference: ReferenceLike, positions: NDArray[np.int32]) -> NDArray[Any]:
    """Return the region of every position (object array of str): prefix, content, suffix or output."""
    bounds = np.cumsum([reference.prefix_length, reference.content_length, reference.suffix_length])
    return np.array(REGIONS, object)[np.searchsorted(bounds, positions, side="right")]
