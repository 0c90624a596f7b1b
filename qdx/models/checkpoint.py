"""From a model's name to a checkpoint folder whose format is the one asked for."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdx.errors import QdxError, printable
from qdx.models import synthetic
from qdx.models.cache import cache_folder
from qdx.models.gguf_file import SUFFIX, gguf_folder
from qdx.models.stated import quantization_of, read_object
from qdx.schema import FORMAT_KERNELS

FORMATS = tuple(FORMAT_KERNELS)
DEMO_FORMATS = ("none", "awq", "gptq", "q4_1", "q4_0", "q8_0")
DEMO = "demo:smollm2/"
# How architectures call the same thing, and where multimodal ones keep their language model.
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
PARTS = ("text_config", "language_config", "llm_config")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder and where it came from.

    Attributes
    ----------
    path : Path
        Folder with config.json, a tokenizer and weights in safetensors, or in a GGUF file.
    format : str
        One of `FORMATS`, as its config.json says.
    source : str
        The name it was asked for by.
    revision : str
        The hub's commit, or the demo model's recipe; "" for a local folder.
    quantizer : str
        What quantized it, as far as its files say; else "".
    derived_from : str
        What it was made from, as far as its files say; else "".
    """

    path: Path
    format: str
    source: str
    revision: str
    quantizer: str
    derived_from: str


def resolve(name: str, *, format: str, cache: Path | None = None, progress: bool = True) -> Checkpoint:
    """Return the checkpoint of that name, made or downloaded if need be.

    Parameters
    ----------
    name : str
        ``demo:smollm2/none|awq|gptq|q4_1|q4_0|q8_0``, ``synthetic:layers=…``, a local folder, a ``.gguf``
        file, or a hub id such as ``Qwen/Qwen3-8B-AWQ``.
    format : str, one of `FORMATS`
        What its config.json must say.
    cache : Path, optional
        Where the demo model is kept; by default `cache_folder`. The hub has its own cache.
    progress : bool
        Report the demo model's preparation on standard error.

    Raises
    ------
    QdxError
        It does not exist, cannot be had, or has another format.
    """
    if format not in FORMATS:
        raise QdxError(f"checkpoint format {format!r} is unknown, one of {', '.join(FORMATS)}")
    revision = ""
    if name.startswith("demo:"):
        path, revision = _demo(name, cache, progress)
    elif name.startswith(synthetic.PREFIX):
        path = synthetic.synthetic_folder(name, format, cache if cache is not None else cache_folder())
        revision = f"recipe {synthetic.RECIPE}"
    elif name.endswith(".gguf") and Path(name).expanduser().is_file():
        path = gguf_folder(Path(name).expanduser(), cache if cache is not None else cache_folder())
    elif name and Path(name).expanduser().is_dir():
        path = Path(name).expanduser().absolute()
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and not Path(name).expanduser().exists():
        path, revision = _hub(name)
    else:
        raise QdxError(
            f"model {name!r}: no such folder: give a checkpoint folder, a hub id, a .gguf file or "
            f"{DEMO}{format}"
        )
    config = read_config(path)
    found = format_of(config, path)
    if found != format:
        raise QdxError(
            f"model {name!r} has format {found!r} (config.json of {path}), asked for {format!r}: "
            f"choose quant={found}, or give another checkpoint for {format}"
        )
    provenance = read_object(path / "qdx-provenance.json") if (path / "qdx-provenance.json").is_file() else {}
    return Checkpoint(
        path=path,
        format=found,
        source=name,
        revision=revision,
        quantizer=str(provenance.get("quantizer", "")) or _stated_quantizer(config),
        derived_from=str(provenance.get("derived_from", "")),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return a checkpoint folder's config.json.

    Raises
    ------
    QdxError
        When it is missing or no JSON object.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise QdxError(
            f"folder {path} has no config.json: it is not a checkpoint, give the folder that holds one"
        )
    return read_object(file)


def vocab_size(path: Path) -> int:
    """Return the number of logits in a row of the model in a checkpoint folder, as its config.json says.

    Raises
    ------
    QdxError
        When that is not a whole number above 0, or config.json is not of a language model.
    """
    size = _stated(path, ("vocab_size",))
    if size is None:
        raise QdxError(
            f"{path / 'config.json'} states no vocab_size: it is not a language model's checkpoint"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise QdxError(f"{path / 'config.json'} states vocab_size={size!r}, must be a whole number above 0")
    return size


def hidden_size(path: Path) -> int:
    """Return the number of values of a hidden state; 0 if config.json does not state it."""
    size = _stated(path, WIDTHS)
    return size if isinstance(size, int) else 0


def context_length(path: Path) -> int | None:
    """Return the greatest number of tokens that the model in a folder has positions for; None if unstated."""
    length = _stated(path, POSITIONS)
    return length if isinstance(length, int) else None


def eos_token_ids(path: Path) -> frozenset[int] | None:
    """Return the tokens that end a generation, as generation_config.json says, or else config.json.

    Returns
    -------
    frozenset of int or None
        Empty where generation_config.json is there and states none, None where only config.json is.

    Raises
    ------
    QdxError
        When one states something that is not a token id or a list of them.
    """
    generation = path / "generation_config.json"
    file = generation if generation.is_file() else path / "config.json"
    stated = read_object(file)
    parts = (stated, *(_part(stated, name) for name in PARTS))
    found = next((part["eos_token_id"] for part in parts if part.get("eos_token_id") is not None), None)
    if found is None:
        return frozenset() if file == generation else None
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise QdxError(
            f"{file} states eos_token_id={found!r:.60}, must be a token id or a list of them: correct it, "
            "outputs are taken to end there"
        )
    return frozenset(ids)


def switching_length(path: Path) -> int | None:
    """Return the length beyond which a model rotates all its tokens otherwise; None where it does not.

    Long-context rotations (longrope of Phi-3, dynamic) take other frequencies as soon as a call has a
    position past this one, so that the same prompt gives other rows beside a longer one, or in a longer
    output.
    """
    config = read_config(path)
    for part in (config, *(_part(config, name) for name in PARTS)):
        rope = _part(part, "rope_scaling") or _part(part, "rope_parameters")
        if not isinstance(rope.get("rope_type", rope.get("type")), str):  # one for each kind of layer
            rope = next((one for one in rope.values() if isinstance(one, dict) and _switches(one)), {})
        if _switches(rope):
            stated = [
                rope.get("original_max_position_embeddings"),
                part.get("original_max_position_embeddings"),
            ]
            known = [length for length in stated if isinstance(length, int)]
            return known[0] if known else context_length(path)
    return None


def _switches(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type", rope.get("type")) in ("longrope", "su", "dynamic")


def _stated(path: Path, keys: tuple[str, ...]) -> Any:
    """Return the first of these values that config.json states, for the language model where it has parts.

    A published multimodal model states only what differs from its class's defaults, which transformers knows.
    """
    config = read_config(path)
    for part in (config, *(_part(config, name) for name in PARTS)):
        for key in keys:
            if part.get(key) is not None:
                return part[key]
    if not any(_part(config, name) for name in PARTS):
        return None
    try:
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config()
    except Exception:  # a type that this transformers does not know: its backend says so, vLLM may run it
        return None
    return next((found for key in keys if (found := getattr(text, key, None)) is not None), None)


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    inner = config.get(name)
    return inner if isinstance(inner, dict) else {}


def format_of(config: dict[str, Any], path: Path) -> str:
    """Return which of `FORMATS` a config.json says.

    Raises
    ------
    QdxError
        Another quantization method, or files that contradict each other.
    """
    quantization = quantization_of(config, Path(path))
    if not quantization:
        return "none"
    method = str(quantization.get("quant_method", "unstated"))
    found = _compressed(quantization) if method == "compressed-tensors" else method
    if found == "fp8" and quantization.get("weight_block_size"):
        found = "fp8_block"
    if found not in FORMATS:
        raise QdxError(
            f"checkpoint {path} is quantized by {found!r}, supported are {', '.join(FORMATS)}: use another "
            "checkpoint"
        )
    return found


def _compressed(quantization: dict[str, Any]) -> str:
    """Name the scheme of a compressed-tensors checkpoint: one of `FORMATS`, or what else it is."""
    schemes = set()
    groups = _part(quantization, "config_groups")
    for name in groups:
        group = _part(groups, name)
        weights, inputs = _part(group, "weights"), _part(group, "input_activations")
        kind, bits = str(weights.get("type", "int")), weights.get("num_bits")
        match kind, bits, str(weights.get("strategy")), weights.get("group_size"):
            case "float", 8, "block", _:
                schemes.add("fp8_block")
            case "float", 8, _, 32:  # powers of two for 32 values: mxfp8
                schemes.add("mxfp8")
            case "float", 8, _, _:
                schemes.add("fp8")
            case "float", 4, "tensor_group", 16:
                schemes.add("nvfp4")
            case "float", 4, "group", 32:
                schemes.add("mxfp4")
            case _:
                schemes.add(f"w{bits}a{inputs.get('num_bits', 16)}" + ("" if kind == "int" else f"-{kind}"))
    return "+".join(sorted(schemes)) or "compressed-tensors"


def _demo(name: str, cache: Path | None, progress: bool) -> tuple[Path, str]:
    form = name.removeprefix(DEMO)
    if form not in DEMO_FORMATS:
        raise QdxError(
            f"demo model {name!r} is unknown, one of {', '.join(DEMO + known for known in DEMO_FORMATS)}"
        )
    from qdx.models import demo

    if form in demo.GGUF_FORMS:
        where = cache if cache is not None else cache_folder()
        file = demo.gguf_files(where, progress=progress) / f"{form}{SUFFIX}"
        return gguf_folder(file, where), f"{demo.PACKAGE} sha256:{demo.SHA256} recipe {demo.GGUF_RECIPE}"
    folder = demo.demo_folder(cache if cache is not None else cache_folder(), progress=progress)
    return folder / form, f"{demo.PACKAGE} sha256:{demo.SHA256} recipe {demo.RECIPE}"


def _hub(name: str) -> tuple[Path, str]:
    """Download from the hub, or take what its cache holds; returns the folder and the commit."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise QdxError(
            f"model {name!r}: no such folder, and a hub id needs huggingface_hub: pip install 'qdx[cpu]'"
        ) from error
    try:
        path = Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, tqdm_class=_bars()))
    except Exception as error:  # its errors come from several libraries, and every one means the same here
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise QdxError(
            f"model {name!r}: no such folder, and not to be had from the model hub ({said}): give a local "
            "checkpoint folder, or choose model=smollm2 without model.checkpoint: a package index has it"
        ) from error
    return path, path.name


def _bars() -> type[Any]:
    """Return the hub's progress bars, drawn past the guard of standard error: they name the hub's files."""
    from huggingface_hub import utils

    hubs: Any = utils  # its bars are not typed

    class Bars(hubs.tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.setdefault("file", getattr(sys.stderr, "unfiltered", sys.stderr))
            options["desc"] = printable(str(options.get("desc") or ""))
            super().__init__(*arguments, **options)

        def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
            super().set_description(printable(desc or ""), refresh)

    return Bars


def _stated_quantizer(config: dict[str, Any]) -> str:
    """Return what GPTQModel and others write as ``meta.quantizer``, or ""."""
    stated = _part(_part(config, "quantization_config"), "meta").get("quantizer", "")
    return ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated)
