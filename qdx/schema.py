"""Dataclasses behind the config groups, and the check that a composed config passes before anything loads.

The YAML files of ``conf/`` hold the defaults (a ConfigStore of fifty nodes would cost every start 1.5 s);
these classes hold the types and the limits. `validate` turns a composed config into an `Experiment` or raises
an error that names the key, the value and the choices.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdx import new_file
from qdx.errors import QdxError, nearest
from qdx.schema_endpoint import ENDPOINT, OpenaiBackend
from qdx.schema_gguf import FILE_TYPES, LlamacppBackend
from qdx.schema_verify import ChallengePrompts, TranscriptPrompts, Verify

FORMAT_KERNELS: Mapping[str, tuple[str, ...]] = {
    "none": ("dense", "any"),
    "awq": ("awq_gemm", "marlin", "machete", "any"),
    "gptq": ("exllama", "marlin", "machete", "any"),
    # The engine chooses their kernels, which are observed; there is no numerical model of them.
    "w4a16": ("any",),
    "w8a16": ("any",),
    "w8a8": ("any",),
    "w4a8": ("any",),
    "fp8": ("any",),
    "fp8_block": ("any",),
    "nvfp4": ("any",),
    "mxfp4": ("any",),
    "bitsandbytes": ("any",),
    # Of GGUF files, which backend=llamacpp runs.
    **dict.fromkeys(FILE_TYPES, ("any",)),
}
# What marketplaces call the weights of a provider (OpenRouter's names), and the configs that it may mean: the
# name of a format says nothing of the kernel. fp6 has no format here; fp16, bf16 and fp32 are model.dtype's.
CLAIMED_QUANTS: Mapping[str, tuple[str, ...]] = {
    "int4": (
        "awq",
        "awq_marlin",
        "awq_machete",
        "gptq",
        "gptq_marlin",
        "gptq_machete",
        "w4a16",
        "w4a8",
        *(name for name in FILE_TYPES if name.startswith(("q4", "iq4"))),
    ),
    "int8": ("w8a16", "w8a8", "bitsandbytes", "q8_0"),
    "fp4": ("nvfp4", "mxfp4", "bitsandbytes"),
    "fp8": ("fp8", "fp8_block"),
    "fp16": ("none", "f16"),
    "bf16": ("none", "bf16"),
    "fp32": ("none", "f32"),
}
CLAIMED_DTYPES: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
MODEL_RUNNERS = ("auto", "v1", "v2")
REPLAYS = ("decode", "prefill")
# What backend=emulator knows of: cards of 132 SMs and compute capability 9.0, and what of vLLM runs on them.
EMULATED_CARDS = ("h100", "h200")
EMULATED_ENGINES = ("0.33.0",)
EMULATED_ATTENTION = ("FLASH_ATTN", "TRITON_ATTN")
EMULATED_KERNELS = ("dense", "marlin", "machete")
MODELLED_FORMATS = ("none", "awq", "gptq")
# Activation dtypes that the GPU kernels take; what is not here takes all of `DTYPES`.
KERNEL_DTYPES: Mapping[str, tuple[str, ...]] = {
    "awq_gemm": ("float16",),
    "exllama": ("float16",),
    "marlin": ("float16", "bfloat16"),
    "machete": ("float16", "bfloat16"),
}
DTYPES = ("float16", "bfloat16", "float32")
LONGEST_LABEL = 160  # bytes: a file system takes 255, and files of a run add to a folder's name
REPORT_FORMATS = ("txt", "html", "md")
REPORT_PRINTS = ("answer", "full")

T = TypeVar("T")


def _one_of(key: str, value: str, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise QdxError(f"{key}={value}: not one of {', '.join(choices)}{nearest(value, choices)}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise QdxError(f"{key}={value}: must be at least {least}")


def check_label(label: str) -> None:
    """Refuse a label that cannot name the folder of a job's results.

    Raises
    ------
    QdxError
        When it is too long, or the name of a file that a sweep's folder holds.
    """
    if (size := len(label.encode("utf-8", "replace"))) > LONGEST_LABEL:
        raise QdxError(
            f"label={label[:20]}…: has {size} bytes, at most {LONGEST_LABEL}: it names a folder, give a "
            "shorter one"
        )
    if label.strip().casefold() in new_file.TAKEN or label.startswith("."):
        raise QdxError(
            f"label={label}: a file of the sweep's folder has that name, or it is hidden: give another label"
        )


def names_folder(label: object) -> bool:
    """Return whether a label is the name of a folder inside the sweep's, not a path such as ``../x``."""
    if not isinstance(label, str) or not label.isprintable():  # a line break would begin a line of a report
        return False
    return label not in ("", ".", "..") and not set(label) & set("/\\")


@dataclass
class Model:
    """Say where the checkpoint of each format is: a ``demo:`` name, a local folder or a hub id."""

    name: str
    checkpoint: dict[str, str | None]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, DTYPES)
        for name in self.checkpoint:
            _one_of("model.checkpoint", name, FORMAT_KERNELS)


@dataclass
class Quant:
    """A weight format and the matmul code that is asked to read it."""

    name: str
    format: str
    kernel: str

    def __post_init__(self) -> None:
        _one_of("quant.format", self.format, FORMAT_KERNELS)
        _one_of("quant.kernel", self.kernel, FORMAT_KERNELS[self.format])


@dataclass
class TransformersBackend:
    """Options of `qdx.backends.transformers.TransformersBackend`."""

    _target_: str
    name: str
    threads: int | None = None
    sm_count: int = 132

    def __post_init__(self) -> None:
        if self.threads is not None:
            _at_least("backend.threads", self.threads, 1)
        _at_least("backend.sm_count", self.sm_count, 1)


@dataclass
class EmulatorOptions:
    """Options of `qdx.backends.emulator.EmulatorBackend`.

    Attributes
    ----------
    card : str
        The GPU that is emulated.
    engine : str
        The version of vLLM that is emulated, eager.
    attention_backend : str
        Of that engine.
    max_num_seqs, max_num_batched_tokens : int
        As the emulated engine has them: the former decides whether short prompts' keys are cut into segments,
        and more tokens than the latter would be cut into steps.
    threads : int, optional
        As many as there are cores when None; they move no bit.
    approximate : bool
        Go on by the CPU's sums where the card's are not known bit for bit.
    """

    card: str = "h100"
    engine: str = "0.33.0"
    attention_backend: str = "FLASH_ATTN"
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 16384
    threads: int | None = None
    approximate: bool = False

    def __post_init__(self) -> None:
        _one_of("backend.card", self.card, EMULATED_CARDS)
        _one_of("backend.engine", self.engine, EMULATED_ENGINES)
        _one_of("backend.attention_backend", self.attention_backend, EMULATED_ATTENTION)
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            _at_least(f"backend.{name}", getattr(self, name), 1)
        if self.threads is not None:
            _at_least("backend.threads", self.threads, 1)


@dataclass(kw_only=True)
class EmulatorBackend(EmulatorOptions):
    """The node of the config group: the options, and what every node has."""

    _target_: str
    name: str


def _vllm(
    default: T, observed: str = "", *, absent: Any = MISSING, argument: bool = True, variable: str = ""
) -> T:
    """Return a field of `VllmOptions` that knows how its value reaches the engine and is read again.

    Parameters
    ----------
    default : object
    observed : str
        Where the engine's ``vllm_config`` has what it settled on; empty: the worker or the environment has.
    absent : object
        What a version without that place has; by default every version has it.
    argument : bool
        Whether it is an engine argument of the same name.
    variable : str
        The environment variable that it sets instead, if any.
    """
    way = {
        "observed": observed,
        "absent": absent,
        "argument": argument and not variable,
        "variable": variable,
    }
    return field(default=default, metadata=way)


@dataclass
class VllmOptions:
    """Options of `qdx.backends.vllm.VllmBackend`; only ``conf/backend/vllm.yaml`` lists them again.

    Attributes
    ----------
    max_model_len : int, optional
        Longest sequence; the model's own when None.
    max_num_batched_tokens : int
        Tokens of one step; a batch's references have to fit it together, unless `chunked_prefill`.
    max_num_seqs : int
        Most references that run together.
    gpu_memory_utilization : float
        Share of the GPU's memory that the engine takes; the rows that are captured need some of the rest.
    kv_cache_memory_bytes : int, optional
        Size of the key-value cache. None: what `gpu_memory_utilization` leaves, which vLLM measures, wrongly
        where several jobs share a GPU; give it there.
    enforce_eager : bool
        Run without compiled and captured graphs.
    tensor_parallel_size, pipeline_parallel_size : int
    kv_cache_dtype : str
    attention_backend : str, optional
        vLLM's choice when None.
    chunked_prefill : bool
        Let a prefill that does not fit a step be cut into chunks, whose last one may run another kernel. The
        check is qdx's own; the engine gets no such setting.
    async_scheduling : bool, optional
        Prepare a step while the one before it runs; vLLM's choice when None.
    model_runner : str
        ``v1``, ``v2``, or ``auto`` for what this version does by default.
    trace_replay : bool, optional
        Replay by vLLM's own trace replay, which needs the second model runner. False: give the sampler rows
        that leave the forced token alone possible. None: the former where the engine has it.
    replay : {"decode", "prefill"}
        Whether the rows of a transcript come from decode steps, as the producer's did, or from one prefill
        of prompt and transcript together: faster by about the number of tokens, and by other kernels, whose
        rows are not the producer's bits.
    companions : str
        Who else shares every batch: the prompt tokens of other requests, joined by ``+``, and at which place
        among them the references come, 0 (before them) where it is not said: ``500+90+233@1``. They are
        random tokens, generate as long as the references do, and are not recorded.
    batch_invariant, marlin_atomic_add : bool, optional
        Set the variable, or take it out of the environment; None leaves it as the user has it.
    """

    max_model_len: int | None = _vllm(None, "model_config.max_model_len")
    max_num_batched_tokens: int = _vllm(16384, "scheduler_config.max_num_batched_tokens")
    max_num_seqs: int = _vllm(64, "scheduler_config.max_num_seqs")
    gpu_memory_utilization: float = _vllm(0.85, "cache_config.gpu_memory_utilization")
    kv_cache_memory_bytes: int | None = _vllm(None, "cache_config.kv_cache_memory_bytes", absent=None)
    enforce_eager: bool = _vllm(True, "model_config.enforce_eager")
    tensor_parallel_size: int = _vllm(1, "parallel_config.tensor_parallel_size")
    pipeline_parallel_size: int = _vllm(1, "parallel_config.pipeline_parallel_size")
    kv_cache_dtype: str = _vllm("auto", "cache_config.cache_dtype")
    attention_backend: str | None = _vllm(
        None, argument=False
    )  # an argument of some versions, else a variable
    chunked_prefill: bool = _vllm(False, argument=False)
    async_scheduling: bool | None = _vllm(None, "scheduler_config.async_scheduling", absent=False)
    model_runner: str = _vllm("auto", argument=False)
    trace_replay: bool | None = _vllm(
        None, "model_config.enable_trace_replay", absent=False, argument=False
    )  # tried first, as only the engine knows whether it can
    replay: str = _vllm("decode", argument=False)
    companions: str = _vllm("", argument=False)
    batch_invariant: bool | None = _vllm(None, variable="VLLM_BATCH_INVARIANT")
    marlin_atomic_add: bool | None = _vllm(None, variable="VLLM_MARLIN_USE_ATOMIC_ADD")

    def __post_init__(self) -> None:
        _one_of("backend.model_runner", self.model_runner, MODEL_RUNNERS)
        _one_of("backend.replay", self.replay, REPLAYS)
        if self.companions and not re.fullmatch(r"[1-9]\d*(\+[1-9]\d*)*(@\d+)?", self.companions):
            raise QdxError(
                f"backend.companions={self.companions}: must be the prompt tokens of other requests, joined "
                "by +, and where the references come among them, such as 500+90+233@1"
            )
        lengths, place = self.company
        if place > len(lengths):
            raise QdxError(
                f"backend.companions={self.companions}: place {place} among {len(lengths)} others, at most "
                f"{len(lengths)}"
            )
        if self.max_model_len is not None:
            _at_least("backend.max_model_len", self.max_model_len, 2)
        for name in (
            "max_num_batched_tokens",
            "max_num_seqs",
            "tensor_parallel_size",
            "pipeline_parallel_size",
        ):
            _at_least(f"backend.{name}", getattr(self, name), 1)
        if self.kv_cache_memory_bytes is not None:
            _at_least("backend.kv_cache_memory_bytes", self.kv_cache_memory_bytes, 1)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise QdxError(
                f"backend.gpu_memory_utilization={self.gpu_memory_utilization}: must be above 0, at most 1"
            )

    @property
    def company(self) -> tuple[tuple[int, ...], int]:
        """The prompt tokens of each companion, and the place of the references among them."""
        lengths, _, place = self.companions.partition("@")
        return tuple(int(length) for length in lengths.split("+") if length), int(place or 0)


@dataclass(kw_only=True)
class VllmBackend(VllmOptions):
    """The node of the config group: the options, and what every node has."""

    _target_: str
    name: str


@dataclass
class _Snippets:
    _target_: str
    name: str
    instruction: str
    references: int = 4
    snippet_tokens: int = 256
    continuation_tokens: int = 16

    def __post_init__(self) -> None:
        _at_least("prompts.references", self.references, 1)
        _at_least("prompts.snippet_tokens", self.snippet_tokens, 1)


@dataclass
class FilePrompts(_Snippets):
    """Options of the sources that read files: a path, a glob or a list of them; null is the handbook."""

    path: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        paths = self.path if isinstance(self.path, list) else [self.path]
        if not paths or not all(isinstance(path, str | None) for path in paths):
            raise QdxError(f"prompts.path={self.path}: must be a path, a glob or a list of them")


@dataclass
class PydocPrompts(_Snippets):
    """Options of the source that reads the standard library's help topics."""


@dataclass
class InlinePrompts:
    """Options of prompts that are written in the config."""

    _target_: str
    name: str
    instruction: str
    texts: list[str]
    continuation: str | None = None
    continuation_tokens: int = 16


@dataclass
class CaptureSettings:
    """Say how much of a captured row is kept.

    Attributes
    ----------
    mode : {"full", "topk", "hidden"}
        "full" keeps the logits of the whole vocabulary, "topk" the greatest only, "hidden" the greatest and
        the hidden state that the row is computed from.
    k : int
        Greatest logits of a row, kept in every mode.
    prefill_positions : int or "all"
        Last content rows of a prefill; the template's rows and the row that predicts the first output are
        always kept.
    components : int
        Length of a sketch.
    """

    mode: str = "full"
    k: int = 20
    prefill_positions: Union[int, str] = 64  # noqa: UP007 - OmegaConf 2.3 knows this spelling of a union only
    components: int = 64

    def __post_init__(self) -> None:
        _one_of("capture.mode", self.mode, ("full", "topk", "hidden"))
        _at_least("capture.k", self.k, 1)
        _at_least("capture.components", self.components, 1)
        if type(self.prefill_positions) is int:
            _at_least("capture.prefill_positions", self.prefill_positions, 0)
        elif self.prefill_positions != "all":
            raise QdxError(
                f"capture.prefill_positions={self.prefill_positions}: must be a number from 0, or all"
            )


@dataclass(kw_only=True)
class Capture(CaptureSettings):
    """The node of the config group: what is kept of each position, and the name of that choice."""

    name: str


@dataclass
class Generate:
    """Free generation, greedy; the end-of-sequence token is ignored."""

    tokens: int = 16

    def __post_init__(self) -> None:
        # The first token comes from prefill: with one there would be no decode step to record.
        _at_least("generate.tokens", self.tokens, 2)


@dataclass
class Dataset:
    """Say how files are written."""

    portable: bool = False


@dataclass
class Report:
    """Files of the report, figures to save (names, or true for all), memory for the distances, MiB, and what
    the terminal shows.
    """

    formats: list[str] = field(default_factory=lambda: ["txt", "html"])
    figures: Any = False
    memory: int = 512
    print: str = "answer"

    def __post_init__(self) -> None:
        _at_least("report.memory", self.memory, 1)
        _one_of("report.print", self.print, REPORT_PRINTS)
        if not self.formats:
            raise QdxError(
                f"report.formats=[]: no report would be written: choose one of {', '.join(REPORT_FORMATS)}"
            )
        for name in self.formats:
            _one_of("report.formats", name, REPORT_FORMATS)
        names = [] if isinstance(self.figures, bool) else self.figures
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise QdxError(
                f"report.figures={self.figures}: must be true, false or a list of names of figures"
            )


@dataclass(kw_only=True)
class Settings:
    """The keys of a config that belong to no group."""

    label: str
    repeats: int = 3
    repeat_scope: str = "engine"
    batch_size: int = 1
    seed: int = 0
    swept: list[str] = field(default_factory=list)
    metric: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not names_folder(self.label):
            raise QdxError(
                f"label={self.label!r}: must name a folder in the sweep's: leave label out, or give it a "
                "name without / and \\"
            )
        check_label(self.label)
        _at_least("repeats", self.repeats, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("seed", self.seed, 0)
        _one_of("repeat_scope", self.repeat_scope, ("engine", "process"))


@dataclass(kw_only=True)
class Experiment(Settings):
    """One job: everything that makes an output, and what is done with it."""

    model: Model
    quant: Quant
    backend: Any
    prompts: Any
    capture: Capture
    generate: Generate
    dataset: Dataset
    report: Report
    verify: Verify

    def __post_init__(self) -> None:
        super().__post_init__()
        runs_gguf = isinstance(self.backend, LlamacppBackend)
        known_engine = runs_gguf or isinstance(
            self.backend, TransformersBackend | EmulatorBackend | VllmBackend
        )
        if known_engine and runs_gguf != (self.quant.format in FILE_TYPES):
            raise QdxError(
                f"quant={self.quant.name}: backend=llamacpp runs the formats of GGUF files, and they run "
                f"there alone: {', '.join(FILE_TYPES)}"
            )
        if isinstance(self.backend, TransformersBackend) and self.quant.format not in MODELLED_FORMATS:
            raise QdxError(
                f"quant={self.quant.name}: backend=transformers has no kernel for format "
                f"{self.quant.format}, only for {', '.join(MODELLED_FORMATS)}: use backend=vllm on a GPU"
            )
        if isinstance(self.backend, TransformersBackend) and self.quant.kernel == "any":
            modelled = [kernel for kernel in FORMAT_KERNELS[self.quant.format] if kernel != "any"]
            raise QdxError(
                f"quant.kernel=any: backend=transformers models one kernel: choose quant.kernel="
                f"{' or '.join(modelled)}, or backend=vllm on a GPU"
            )
        if isinstance(self.backend, EmulatorBackend) and self.quant.kernel not in EMULATED_KERNELS:
            raise QdxError(
                f"quant.kernel={self.quant.kernel}: backend=emulator emulates vLLM {self.backend.engine} "
                f"with {', '.join(EMULATED_KERNELS)}: choose one of them, or backend=transformers"
            )
        allowed = KERNEL_DTYPES.get(self.quant.kernel, DTYPES)
        if self.model.dtype not in allowed:
            raise QdxError(
                f"model.dtype={self.model.dtype}: kernel {self.quant.kernel} of quant={self.quant.name} "
                f"takes {' or '.join(allowed)}: set model.dtype to that or choose another quant"
            )
        if isinstance(self.backend, OpenaiBackend) and isinstance(
            self.prompts, TranscriptPrompts | ChallengePrompts
        ):
            raise QdxError(
                f"backend=openai asks for new answers, and prompts={self.prompts.name} gives none: "
                "choose another prompts=…, or replay transcripts with backend=transformers or vllm"
            )
        for name in ("claims", "calibration", "challenge", "require", "go_on"):
            if getattr(self.verify, name) and not isinstance(self.prompts, TranscriptPrompts):
                raise QdxError(f"verify.{name} judges transcripts: add prompts=transcripts")
        if isinstance(self.prompts, ChallengePrompts) and self.capture.mode != "full":
            raise QdxError(
                f"capture={self.capture.name}: prompts=challenge binds the full row of every position "
                "(python -m qdx.commit), which it does not keep: remove capture"
            )
        if not self.model.checkpoint.get(self.quant.format):
            raise QdxError(
                f"model.checkpoint.{self.quant.format} is empty and quant={self.quant.name} needs it: "
                f"set it to a local folder or a hub id"
            )


# A plug-in's own class is not here: its options are checked against its signature.
BY_TARGET: Mapping[str, type] = {
    ENDPOINT: OpenaiBackend,
    "qdx.backends.transformers.TransformersBackend": TransformersBackend,
    "qdx.backends.emulator.EmulatorBackend": EmulatorBackend,
    "qdx.backends.vllm.VllmBackend": VllmBackend,
    "qdx.backends.llamacpp.LlamacppBackend": LlamacppBackend,
    "qdx.prompts.Pdf": FilePrompts,
    "qdx.prompts.Text": FilePrompts,
    "qdx.prompts.Pydoc": PydocPrompts,
    "qdx.prompts.Inline": InlinePrompts,
    "qdx.prompts.Transcripts": TranscriptPrompts,
    "qdx.prompts.Challenge": ChallengePrompts,
}


def _checked(schema: type, node: Any, key: str) -> Any:
    """Return `node` as a `schema` object; errors name the full key, its value and what it may be."""
    known = [f.name for f in fields(schema)]
    if not isinstance(node, DictConfig):
        examples = ", ".join(f"{key}.{name}=…" for name in known if name not in ("_target_", "name"))
        raise QdxError(f"{key}={_shown(node)}: it holds keys of its own: set one of them instead, {examples}")
    for name in map(str, node):
        if name not in known:
            full = f"{key}.{name}" if key else name
            raise QdxError(f"{full}: unknown key, one of {', '.join(known)}{nearest(name, known)}")
    for f in fields(schema):
        needed = f.default is MISSING and f.default_factory is MISSING
        if OmegaConf.is_missing(node, f.name) or (needed and f.name not in node):
            full = f"{key}.{f.name}" if key else f.name
            raise QdxError(f"{full} is not set and has no default: add {full}=…")
    try:
        # Resolved first: an interpolation looks for its key in the whole config.
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        inner = (error.full_key or "").removeprefix(f"{key}.")
        name = re.split(r"[.\[]", inner)[0]
        full = ".".join(part for part in (key, name) if part)
        if name not in known or name not in node:
            first = str(error.msg if error.msg else error).splitlines()[0]
            raise QdxError(f"{full}: {first}") from error
        default = next(f.default_factory for f in fields(schema) if f.name == name)
        limit = _kind(get_type_hints(schema)[name], None if default is MISSING else default())
        raise QdxError(f"{full}={_shown(node[name])}: must be {limit}") from error


def _shown(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)


def _kind(hint: Any, example: Any = None) -> str:
    """Say what a type in the classes above means to somebody who writes a config."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is list:
        return f"a list in brackets, such as '{_shown(example or ['a', 'b'])}'"
    if get_origin(hint) is dict:
        return "a mapping, such as '{name: value}'"
    return " or ".join(_kind(choice) for choice in get_args(hint))


def validate(cfg: DictConfig) -> Experiment:
    """Check a composed config.

    Parameters
    ----------
    cfg : DictConfig
        What Hydra composed (without its ``hydra`` node).

    Returns
    -------
    Experiment

    Raises
    ------
    QdxError
        Naming the key, the value, the choices and the nearest one.
    """
    known = [f.name for f in fields(Experiment)]
    for name in map(str, cfg):
        if name not in known and name != "hydra":
            raise QdxError(f"{name}: unknown key, one of {', '.join(known)}{nearest(name, known)}")
    parts: dict[str, Any] = {}
    for name, schema in (
        ("model", Model),
        ("quant", Quant),
        ("capture", Capture),
        ("generate", Generate),
        ("dataset", Dataset),
        ("report", Report),
        ("verify", Verify),
    ):
        parts[name] = _checked(schema, cfg.get(name), name)
    for name in ("backend", "prompts"):
        if not isinstance(cfg.get(name), DictConfig):
            raise QdxError(f"{name}={_shown(cfg.get(name))}: must be the name of an option, {name}=…")
        target = str(cfg[name].get("_target_"))
        parts[name] = (
            _checked(BY_TARGET[target], cfg[name], name)
            if target in BY_TARGET
            else OmegaConf.to_container(cfg[name], resolve=True)
        )
    settings = {f.name: cfg[f.name] for f in fields(Settings) if f.name in cfg}  # resolves the label
    checked = _checked(Settings, OmegaConf.create(settings), "")
    return Experiment(**parts, **{f.name: getattr(checked, f.name) for f in fields(Settings)})


def label(swept: list[str], root: DictConfig) -> str:
    """Name a job after its quant and every further swept key, such as ``awq,batch_size=4``.

    Parameters
    ----------
    swept : list of str
        Keys that vary in the sweep.
    root : DictConfig
        The job's config.

    Returns
    -------
    str
        Usable as a folder name: ``/`` and other separators become ``_``, and the start of a hash then keeps
        apart what only differs in those.
    """
    parts = [str(root.quant.name)]
    for key in sorted(swept):
        if key == "quant":
            continue
        value = OmegaConf.select(root, key)
        if value is None:
            value = _choice(root, key)
        if isinstance(value, DictConfig):
            value = value.get("name", "+".join(str(name) for name in value))
        parts.append(f"{key}=" + str(value))
    text = ",".join(parts)
    name = "".join("_" if c in '/\\:*?"<>|\n\t ' else c for c in text)
    if name == text and len(name.encode()) <= LONGEST_LABEL:
        return name
    short = name.encode()[: LONGEST_LABEL - 7].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _choice(root: DictConfig, group: str) -> str | None:
    """Return the option chosen in a group that leaves no node in the config, such as experiment."""
    from hydra.core.hydra_config import HydraConfig

    if "hydra" in root:
        chosen = OmegaConf.select(root, "hydra.runtime.choices")
    elif HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices
    else:
        return None
    return None if chosen is None else chosen.get(group)


def _resolver(swept: Any, *, _root_: DictConfig) -> str:
    return label([str(key) for key in swept], _root_)


OmegaConf.register_new_resolver("qdx.label", _resolver, replace=True)
