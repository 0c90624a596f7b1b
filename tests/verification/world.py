"""Runs everything that a liar and her verifier run, once, so that thousands of forgeries are judged cheaply.

A replay depends on the tokens and the batch, not on what a producer publishes beside them. So every text that
a forgery may be made of is replayed by every config in one verifier's sweep, the *bank*, through the command
line. A forged file's verification is then a sweep folder whose ``run.nc`` files hold the replays of its
texts, reference by reference, and ``python -m qdx.report`` judges it. The bank's last repeat is not shown to
the verifier: it is the run of whoever forges, in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import qdx
from qdx.dataset.layout import CONFIG_COORDS
from qdx.prompts._transcript_file import read as read_transcripts
from qdx.report.__main__ import main as report
from qdx.verification.commitments import commit
from tests import tiny, warm
from tests.sweeping import checkpoints, environment
from tests.verification import forging
from tests.verification.forging import Groups

ROOT = Path(__file__).parents[2]  # its qdx runs, whichever is installed
OTHER = "other:"  # begins the name of a config of the other checkpoint
SNIPPET = 60  # exllama's prefill repeats over 50 rows
DAY = 86_400  # seconds
Rows = dict[str, np.ndarray]  # by variable, (reference, position, …)


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes
    ----------
    configs : tuple of str
        Run honestly, and by the verifier.
    others : tuple of str
        Run of the other checkpoint.
    changed : tuple of str
        Configs whose own text is changed in one, in all but one, in the last token.
    references, known : int
        Judged, and of the calibration (0: there is none).
    tokens : int
    processes : int
        Of the verifier for each config, two of them reruns; one more is the forger's.
    twins : bool
        See `tests.tiny.build`.
    """

    configs: tuple[str, ...] = ("awq", "awq_marlin", "gptq")
    others: tuple[str, ...] = ("awq",)
    changed: tuple[str, ...] = ("awq", "gptq")
    references: int = 8
    known: int = 0
    tokens: int = 8
    processes: int = 3
    twins: bool = False
    seed: int = 1


@dataclass(frozen=True)
class Judged:
    """How a verification ended.

    Attributes
    ----------
    verdicts, because : dict
        By producer.
    status : int
        Of ``python -m qdx.report``.
    folder : Path
    """

    verdicts: dict[str, str]
    because: dict[str, str]
    status: int
    folder: Path


@dataclass
class World:
    """What honest runs, other checkpoints and replays gave.

    Attributes
    ----------
    folder : Path
        ``made``, ``other``, ``bank`` and ``known`` (the calibration) are sweep folders in it.
    size : Size
    texts : dict
        Name → token ids (reference, token).
    """

    folder: Path
    size: Size
    texts: dict[str, np.ndarray] = field(default_factory=dict)
    _kept: dict[tuple[str, str, str, bool], Rows] = field(default_factory=dict)

    @classmethod
    def build(cls, folder: Path, size: Size) -> World:
        """Run what is not there yet."""
        folder.mkdir(parents=True, exist_ok=True)
        world = cls(folder, size)
        models = folder / "models"
        own, other = models / "own", models / "other"
        if not models.exists():
            tiny.build(own, size.seed, size.twins)
            if size.others:
                tiny.build(other, size.seed + 1, size.twins)
        total = size.references + size.known
        world._sweep("made", own, size.configs, total)
        if size.others:
            world._sweep("other", other, size.others, total)  # of as many references: they are cut alike
        world._read_texts()
        world._verify("bank", own, world.texts, range(size.references))
        if size.known:
            honest = {c: world.made["output"]["token_id"].sel(config=c).values[0] for c in size.configs}
            world._verify("known", own, honest, range(size.references, total))
        return world

    @property
    def count(self) -> int:
        """References judged."""
        return self.size.references

    @cached_property
    def made(self) -> Groups:
        """The honest sweep, of all references."""
        return forging.read(self.folder / "made" / "sweep.nc")

    @cached_property
    def other(self) -> Groups:
        """The other checkpoint's."""
        return forging.read(self.folder / "other" / "sweep.nc")

    @cached_property
    def bank(self) -> dict[str, Groups]:
        """The replays of all texts, by config, with their full rows."""
        return {c: _run(self.folder / "bank" / c / "run.nc") for c in self.size.configs}

    def honest(self, labels: Sequence[str]) -> Groups:
        """A copy of the honest sweep: these labels, the judged references."""
        groups = {}
        for name, data in self.made.items():
            if "config" in data.dims:
                data = data.sel(config=list(labels))
            if "reference" in data.dims:
                data = data.isel(reference=slice(self.count))
            if name in forging.PHASES:
                data = data.isel(position=data["captured"].values.any((0, 1, 2)))
            groups[name] = data.copy(deep=True)
        forging.rehash(groups)
        return groups

    def rows(self, config: str, text: str, committed: bool = False) -> Rows:
        """Decode rows of a config over a text: as it generated them, or as a forger replays it."""
        key = ("decode", config, text, committed)
        if key not in self._kept:
            self._kept[key] = self._rows(config, text, committed)
        return self._kept[key]

    def _rows(self, config: str, text: str, committed: bool) -> Rows:
        if config == text and not committed:
            source = self.other if config.startswith(OTHER) else self.made
            label = config.removeprefix(OTHER)
            data = source["decode"].sel(config=label).isel(repeat=0, reference=slice(self.count))
        else:
            if config.startswith(OTHER):
                raise ValueError(f"{config} ran its own text only, not {text}")
            groups = self.bank[config or self.size.configs[0]]
            data = groups["replay"].isel(config=0, repeat=-1).sel(producer=text)
        return _arrays(data, committed)

    def prefill(self, config: str, text: str, committed: bool = False) -> Rows:
        """Prefill rows of a config; the last one's target is the text's first token."""
        key = ("prefill", config, text, committed)
        if key not in self._kept:
            self._kept[key] = self._prefill(config, text, committed)
        return self._kept[key]

    def _prefill(self, config: str, text: str, committed: bool) -> Rows:
        if config.startswith(OTHER):
            data = self.other["prefill"].sel(config=config.removeprefix(OTHER)).isel(repeat=0)
            return _arrays(data.isel(reference=slice(self.count)), committed)
        groups = self.bank[config or self.size.configs[0]]
        data = groups["prefill"].isel(config=0, repeat=-1)
        found = _arrays(data, committed)
        first = data.sel(producer=text)
        length = groups["references"]["length"].values
        at = [data["position"].values.tolist().index(n) for n in length]
        for name, value in (
            ("token_id", "first_token_id"),
            ("target_logit", "first_logit"),
            ("target_rank", "first_rank"),
        ):
            found[name] = found[name].copy()
            found[name][np.arange(self.count), at] = first[value].values
        return found

    def judge(
        self,
        groups: Groups,
        target: Path,
        *,
        texts: Mapping[str, Sequence[str]],
        references: Sequence[int] | None = None,
        configs: Sequence[str] = (),
        calibration: str = "",
        claims: Mapping[str, str] | None = None,
        alpha: float = 0.05,
    ) -> Judged:
        """Judge a forged file by the bank's replays of its texts.

        Parameters
        ----------
        groups : Groups
            The file.
        target : Path
            The verifier's sweep folder.
        texts : Mapping
            Of every label in the file, each reference's text.
        references : sequence of int, optional
            Which of the judged references the file's are. Default: all, in order.
        configs : sequence of str, optional
            That the verifier tries. Default: all.
        calibration : str
            The machine (of `forging.MACHINES`) that the calibration was made on, as its file states it; "":
            there is none.
        """
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        file = forging.write(groups, target / "producers.nc")
        sha256 = read_transcripts(file).sha256
        chosen = list(range(self.count)) if references is None else list(references)
        names = [str(n) for n in groups["references"]["reference"].values]
        labels = [str(c) for c in groups["output"]["config"].values]
        tried = list(configs or self.size.configs)
        for config in tried:
            run = self._replays(config, groups, labels, names, chosen, texts, sha256)
            forging.write(run, target / config / "run.nc")
        plan = json.loads((self.folder / "bank" / "sweep.json").read_text())
        plan["verify"].update(alpha=alpha, claims=dict(claims or {}) or None)
        plan.update(labels=tried, metrics={}, analyses={})
        plan["report"].update(formats=["txt"])
        (target / "sweep.json").write_text(json.dumps(plan))
        arguments = [str(target)]
        if calibration:
            arguments += ["--calibration", str(self._known(calibration))]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = report(arguments)
        summary = json.loads((target / "summary.json").read_text()) if status != 2 else {}
        found = summary.get("analyses", {}).get("verify")
        if not found:
            raise AssertionError(f"{target}: no verdict (status {status}): {said.getvalue()[-2000:]}")
        return Judged(found["verdict"], found["because"], status, target)

    def _known(self, machine: str) -> Path:
        """The folder of the calibration, whose producers state a machine."""
        source, target = self.folder / "known", self.folder / f"known-{machine}"
        if machine == "here":
            return source
        if not (target / "producers.nc").exists():
            target.mkdir(exist_ok=True)
            shutil.copyfile(source / "sweep.nc", target / "sweep.nc")
            groups = forging.read(source / "producers.nc")
            for label in self.size.configs:
                forging.state(label, **forging.MACHINES[machine])(groups)
            forging.write(groups, target / "part.nc").replace(target / "producers.nc")
        return target

    def _replays(
        self,
        config: str,
        groups: Groups,
        labels: Sequence[str],
        names: Sequence[str],
        chosen: Sequence[int],
        texts: Mapping[str, Sequence[str]],
        sha256: str,
    ) -> Groups:
        """One ``run.nc``: the config's replays of every label's texts."""
        bank = self.bank[config]
        known = [str(p) for p in bank["replay"]["producer"].values]
        which = xr.DataArray(
            [[known.index(texts[d][r]) for r in range(len(chosen))] for d in labels],
            dims=("producer", "reference"),
        )
        at = xr.DataArray(list(chosen), dims="reference")
        hashes = {
            "references_sha256": str(groups["provenance"]["references_sha256"].values[0]),
            "transcripts_sha256": sha256,
        }
        stated = bank["provenance"]
        full = groups["/"].attrs.get("kind") == "commitments"
        run: Groups = {
            "/": xr.Dataset(attrs={**bank["/"].attrs, **hashes}),
            "references": bank["references"].isel(reference=at).assign_coords(reference=list(names)),
            "provenance": stated.assign({k: ("config", [v]) for k, v in hashes.items()}),
        }
        tokens = groups["output"].sizes["output_token"]
        length = bank["references"]["length"].values[list(chosen)]
        for phase in ("prefill", "replay"):
            data = (
                bank[phase]
                .isel(repeat=slice(self.size.processes))
                .drop_vars([n for n in bank[phase].coords if str(n).startswith("producer_")])
            )
            data = data.drop_vars([] if full else ["logit"])
            new: dict[str, Any] = {}
            for name, variable in data.data_vars.items():
                if "producer" in variable.dims:
                    taken = variable.drop_vars("producer").isel(producer=which, reference=at)
                elif "reference" in variable.dims:
                    taken = variable.isel(reference=at)
                else:
                    taken = variable
                new[str(name)] = taken.transpose(*variable.dims)
            found = xr.Dataset(new, attrs=data.attrs).assign_coords(
                reference=list(names), producer=list(labels)
            )
            decode = groups["decode"]
            for name in CONFIG_COORDS:
                found = found.assign_coords({f"producer_{name}": ("producer", decode[name].values)})
            if phase == "replay":
                inside = found["position"].values[None] < length[:, None] + tokens
                found["captured"] = found["captured"] & xr.DataArray(inside, dims=("reference", "position"))
                found["captured"] = found["captured"].transpose(*data["captured"].dims)
                found = found.isel(position=inside.any(0))
            run[phase] = found
        return run

    def _sweep(self, name: str, models: Path, quants: Sequence[str], references: int) -> None:
        if (self.folder / name / "summary.json").exists():
            return
        paths = {form: models / form for form in ("none", "awq", "gptq")}
        arguments = [
            "-m",
            f"quant={','.join(quants)}",
            f"prompts.references={references}",
            f"prompts.snippet_tokens={SNIPPET}",
            "capture.prefill_positions=8",
            f"generate.tokens={self.size.tokens}",
            *FEW,
            *checkpoints(paths),
        ]
        _run_command(self.folder, [*arguments, "repeats=1", f"hydra.sweep.dir={name}"])

    def _verify(self, name: str, models: Path, texts: Mapping[str, np.ndarray], chosen: range) -> None:
        if (self.folder / name / "summary.json").exists():
            return
        file = self.folder / f"{name}.nc"
        forging.write(_of_texts(self.made, texts, chosen), file)
        paths = {form: models / form for form in ("none", "awq", "gptq")}
        repeats = self.size.processes + 1 if name == "bank" else 1
        arguments = [
            "-m",
            "prompts=transcripts",
            f"prompts.path='{file}'",
            f"quant={','.join(self.size.configs)}",
            "capture.prefill_positions=8",
            f"repeats={repeats}",
            "repeat_scope=process",
            *FEW,
            *checkpoints(paths),
        ]
        _run_command(self.folder, [*arguments, f"hydra.sweep.dir={name}"])

    def _read_texts(self) -> None:
        def tokens(groups: Groups, config: str) -> np.ndarray:
            return np.asarray(groups["output"]["token_id"].sel(config=config).values[0, : self.count])

        for config in self.size.configs:
            self.texts[config] = tokens(self.made, config)
        for config in self.size.others:
            self.texts[OTHER + config] = tokens(self.other, config)
        vocab = int(self.made["provenance"]["vocab"].values[0])
        shape = (self.count, self.size.tokens)
        generator = np.random.default_rng(self.size.seed)
        # The honest vocabulary's ordinary tokens: the first three are special.
        self.texts["random"] = generator.integers(3, vocab, shape).astype(np.int32)
        self.texts["spam"] = np.tile(generator.integers(3, vocab, shape[1]).astype(np.int32), (shape[0], 1))
        for config in self.size.changed:
            own = self.texts[config]
            others = (own + generator.integers(1, vocab - 4, shape)) % (vocab - 3) + 3
            for kind, where in (("last", [-1]), ("tail", range(1, shape[1])), ("one", [shape[1] // 2])):
                changed = own.copy()
                changed[:, list(where)] = others[:, list(where)]
                self.texts[f"{config}+{kind}"] = changed.astype(np.int32)
            second = own.copy()  # the least that a text can lie: the last token is the runner-up
            top = self.made["decode"]["top_id"].sel(config=config).isel(repeat=0)
            at = self.made["references"]["length"].values[: self.count] + shape[1] - 1
            last = [top["position"].values.tolist().index(n) for n in at]
            second[:, -1] = top.values[np.arange(self.count), last, 1]
            self.texts[f"{config}+second"] = second
            self.texts[f"{config}+moved"] = np.roll(own, 1, 0)  # each reference has another one's
            if self.size.twins:
                self.texts[f"{config}+twin"] = (own ^ 1).astype(np.int32)


FEW = ("backend.threads=1", "metric=[l2]", "analysis=[classes]", "report.formats=[txt]")


def _run_command(folder: Path, arguments: Sequence[str]) -> None:
    # A large world takes hours, and a sweep that was stopped is taken up again.
    done = warm.run("qdx", arguments, folder, {**environment(), "PYTHONPATH": str(ROOT)}, timeout=DAY)
    # A verifier's exit status says its verdicts, and most texts are nobody's.
    if done.returncode not in (0, 3, 4):
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])


def _run(path: Path) -> Groups:
    with qdx.open(path) as tree:
        groups = {name: child.to_dataset().load() for name, child in tree.children.items()}
        groups["/"] = xr.Dataset(attrs=tree.attrs)
    return groups


def _arrays(data: xr.Dataset, committed: bool) -> Rows:
    """The variables of rows as (reference, position, …)."""
    found = {
        str(name): variable.transpose("reference", "position", ...).values
        for name, variable in data.data_vars.items()
        if {"reference", "position"} <= set(variable.dims) and name != "logit"
    }
    if committed:
        logit = data["logit"].transpose("reference", "position", "vocab").values
        dtype = str(data["dtype"].values)
        found["commitment"] = np.stack([commit(rows, dtype) for rows in logit])
    return found


def _of_texts(made: Groups, texts: Mapping[str, np.ndarray], chosen: range) -> Groups:
    """A producers' file whose labels are texts; nothing but its tokens is meant."""
    indices = list(chosen)
    groups: Groups = {"/": made["/"]}
    count = len(texts)
    for name, data in made.items():
        if name == "/":
            continue
        if "reference" in data.dims:
            data = data.isel(reference=indices)
            # Every prompt set of qdx names its references so.
            data = data.assign_coords(reference=[f"ref_{i}" for i in range(len(indices))])
        if "config" in data.dims:
            known = [str(c) for c in data["config"].values]
            which = [known.index(text) if text in known else 0 for text in texts]
            data = data.isel(config=which).assign_coords(config=list(texts))
        if name in forging.PHASES:
            data = data.isel(position=data["captured"].values.any((0, 1, 2)))
        groups[name] = data.copy(deep=True)
    length = groups["references"]["length"].values
    forging.rehash(groups)
    for c, tokens in enumerate(texts.values()):
        own = tokens if len(tokens) == len(indices) else tokens[indices]
        groups["output"]["token_id"].values[c] = own[None]
        for r, n in enumerate(length):
            for phase, offset in (("prefill", 0), ("decode", 1)):
                position = groups[phase]["position"].values
                index = position - n
                here = (index >= offset) & (index < own.shape[1] if offset else index == 0)
                groups[phase]["token_id"].values[c, :, r, here] = own[r, index[here]][:, None]
    assert count == len(groups["output"]["config"])
    return groups
