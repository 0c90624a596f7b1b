"""The rows of a sweep that another sweep's can be held against: by tokens, not by names of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.view import stated
from qdx.dataset.layout import REPORT_ORDER
from qdx.errors import QdxError
from qdx.statistics import Bools, Ints
from qdx.verification.environment import HARDWARE, SOFTWARE
from qdx.verification.environment_class import class_of

MARKS = ("commitment", "row_hash")  # what says whether two rows are equal, the stronger one first


@dataclass(frozen=True)
class Rows:
    """The rows of a phase of one sweep.

    Attributes
    ----------
    configs : list of str
    units : list of str
        What each unit of rows, a prompt or a prompt with a given continuation, is by its tokens.
    position_P : array of int64
    captured_CQUP : array of bool (config, repeat, unit, position)
    consumed_CQUT : array of int64 (config or 1, repeat or 1, unit, token)
        Tokens that decode steps consume, in order; −1 after their end. Without tokens in prefill.
    length_U : array of int64
        Tokens of each prompt: decode's first position is one more.
    data : xarray.Dataset
        The phase, unread.
    """

    configs: list[str]
    units: list[str]
    position_P: Ints
    captured_CQUP: Bools
    consumed_CQUT: Ints
    length_U: Ints
    data: xr.Dataset
    _kept: dict[tuple[str, int], NDArray[Any]] = field(default_factory=dict, repr=False)

    def values(self, name: str, config: int, repeat: int = 0) -> NDArray[Any]:
        """A variable of one config and repeat: (unit, position, …)."""
        if (name, config) in self._kept and repeat == 0:
            return self._kept[name, config]
        rows = self.data[name].isel(config=config, repeat=repeat)
        values = np.asarray(_by_unit(rows).values)
        if name in MARKS and repeat == 0:  # every two configs ask for them
            self._kept[name, config] = values
        return values


class Side:
    """One of the sweeps that are compared.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returns of a sweep, a run or commitments.
    path : str
        Where it is, for messages.
    """

    def __init__(self, tree: xr.DataTree, path: str) -> None:
        self.tree, self.path = tree, path
        if "references" not in tree.children:
            raise QdxError(f"{path} has no /references: without its prompts no rows can be compared")
        self.phases: dict[str, Rows] = {}
        self.not_read: dict[str, str] = {}
        for phase in REPORT_ORDER:
            if phase not in tree.children or not tree[phase].to_dataset().sizes.get("position"):
                continue
            try:
                self.phases[phase] = self._rows(phase)
            except (KeyError, ValueError, IndexError) as error:  # what lacks a part, or was put together
                self.not_read[phase] = f"its groups do not fit each other: {str(error)[:80]}"
        if not self.phases:
            why = "; ".join(f"{phase}: {said}" for phase, said in self.not_read.items())
            raise QdxError(f"{path} has no rows that can be compared{f' ({why})' if why else ''}")
        self.configs = next(iter(self.phases.values())).configs

    def fact(self, name: str, config: str) -> str:
        """A fact of a config as text; "" where the file does not state it."""
        return stated(self._coordinates, self._stored, name, config)

    def facts(self, config: str) -> dict[str, str]:
        """Every fact of software and hardware of a config."""
        return {name: self.fact(name, config) for name in (*SOFTWARE, *HARDWARE)}

    def environment(self, config: str) -> dict[str, str]:
        """The environment class of a config; see `qdx.verification.environment_class`."""
        return class_of(self.tree, self._coordinates, config)

    def weights(self, config: str) -> tuple[str, ...]:
        """Digests of the weights' files, sorted; empty where they are not stated."""
        text = self.fact("weights_sha256", config)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return (text,) if text else ()
        return tuple(sorted(map(str, content.values()))) if isinstance(content, dict) else (text,)

    @cached_property
    def _stored(self) -> xr.Dataset:
        return self.tree["provenance"].to_dataset() if "provenance" in self.tree.children else xr.Dataset()

    @cached_property
    def _coordinates(self) -> xr.Dataset:
        return self.tree[next(iter(self.phases))].to_dataset()

    @cached_property
    def prompts(self) -> list[str]:
        """What each reference is by its token ids."""
        stored = self.tree["references"].to_dataset()
        ids = np.asarray(stored["token_ids"].transpose("reference", "token").values, np.int64)
        return [
            hashlib.sha256(row[:length].tobytes()).hexdigest()
            for row, length in zip(ids, self._lengths, strict=True)
        ]

    @cached_property
    def _lengths(self) -> Ints:
        return np.asarray(self.tree["references"].to_dataset()["length"].values, np.int64)

    def _rows(self, phase: str) -> Rows:
        data = self.tree[phase].to_dataset()
        names = [str(name) for name in self.tree["references"].to_dataset()["reference"].values]
        at = [names.index(str(name)) for name in data["reference"].values]
        prompts, length_R = [self.prompts[i] for i in at], self._lengths[at]
        captured = np.asarray(_by_unit(data["captured"]).transpose("config", "repeat", ...).values, bool)
        producers = data.sizes.get("producer", 0) if "producer" in data["captured"].dims else 0
        if producers:
            consumed_UT = self._transcripts(data, at)
            length_R = np.tile(length_R, producers)
            units = [
                f"{prompt} {hashlib.sha256(row.tobytes()).hexdigest()}"
                for prompt, row in zip(prompts * producers, consumed_UT, strict=True)
            ]
            consumed = consumed_UT[None, None]
        elif phase == "decode":
            output = self.tree["output"].to_dataset()["token_id"]
            output = output.transpose("config", "repeat", "reference", "output_token")
            consumed = np.asarray(output.sel(reference=data["reference"]).values, np.int64)
            units = prompts
        elif phase == "replay":
            stored = self.tree["references"].to_dataset()["continuation"]
            stored = stored.transpose("reference", "continuation_token")
            consumed = np.asarray(stored.values, np.int64)[at][None, None]
            units = prompts
        else:
            consumed, units = np.zeros((1, 1, len(prompts), 0), np.int64), prompts
        positions = np.asarray(data["position"].values, np.int64)
        labels = [str(label) for label in data["config"].values]
        return Rows(labels, units, positions, captured, consumed, length_R, data)

    def _transcripts(self, data: xr.Dataset, at: Sequence[int]) -> Ints:
        """Tokens of every producer's transcripts, (producer × reference, token)."""
        first = self.tree["prefill"].to_dataset()["first_token_id"].isel(config=0, repeat=0)
        first_DR = np.asarray(first.transpose("producer", "reference").values, np.int64)
        forced = data["token_id"].isel(config=0, repeat=0).transpose("producer", "reference", "position")
        forced_DRP = np.asarray(forced.values, np.int64)
        tokens = np.full((*first_DR.shape, 1 + forced_DRP.shape[-1]), -1, np.int64)
        tokens[..., 0] = first_DR
        for r, length in enumerate(self._lengths[at]):
            own = np.asarray(data["position"].values) > length
            tokens[:, r, 1 : 1 + own.sum()] = forced_DRP[:, r, own]
        return tokens.reshape(-1, tokens.shape[-1])


def _by_unit(data: xr.DataArray) -> xr.DataArray:
    """Put the transcripts of all producers behind each other, producer by producer, as units."""
    if "producer" not in data.dims:
        return data.rename(reference="unit").transpose(..., "unit", "position", *_rest(data))
    lead = [dim for dim in ("config", "repeat") if dim in data.dims]
    data = data.transpose(*lead, "producer", "reference", "position", *_rest(data))
    shape = list(data.shape)
    n = len(lead)
    values = data.data.reshape((*shape[:n], shape[n] * shape[n + 1], *shape[n + 2 :]))
    return xr.DataArray(values, dims=(*lead, "unit", "position", *_rest(data)))


def _rest(data: xr.DataArray) -> list[str]:
    known = ("config", "repeat", "producer", "reference", "unit", "position")
    return [str(dim) for dim in data.dims if dim not in known]


@dataclass(frozen=True)
class Shared:
    """Which rows of a phase two sweeps have in common: indices of units and positions in each.

    Attributes
    ----------
    units, positions : pair of array of int
    """

    units: tuple[Ints, Ints]
    positions: tuple[Ints, Ints]

    @classmethod
    def of(cls, a: Rows, b: Rows) -> Shared:
        """Match units by their tokens; of equal ones in a sweep the first counts."""
        there = {unit: i for i, unit in reversed(list(enumerate(b.units)))}
        mine = {unit: i for i, unit in reversed(list(enumerate(a.units)))}
        both = [(i, there[unit]) for unit, i in mine.items() if unit in there]
        both.sort()
        pairs = np.array(both, np.int64).reshape(-1, 2)
        _, at_a, at_b = np.intersect1d(a.position_P, b.position_P, return_indices=True)
        return cls((pairs[:, 0], pairs[:, 1]), (at_a.astype(np.int64), at_b.astype(np.int64)))

    def take(self, array: NDArray[Any], side: int) -> NDArray[Any]:
        """Cut (unit, position, …) down to what both have."""
        return np.asarray(array[self.units[side]][:, self.positions[side]])

    def comparable(self, a: Rows, b: Rows, one: tuple[int, int], two: tuple[int, int]) -> Bools:
        """Rows (unit, position) that both (config, repeat) captured after the same tokens."""
        both = self.take(a.captured_CQUP[one], 0) & self.take(b.captured_CQUP[two], 1)
        if not a.consumed_CQUT.shape[-1]:
            return np.asarray(both, bool)
        tokens_a, tokens_b = (
            rows.consumed_CQUT[
                min(at[0], rows.consumed_CQUT.shape[0] - 1), min(at[1], rows.consumed_CQUT.shape[1] - 1)
            ][units]
            for rows, at, units in ((a, one, self.units[0]), (b, two, self.units[1]))
        )
        most = max(tokens_a.shape[-1], tokens_b.shape[-1])
        tokens_a, tokens_b = (
            np.pad(tokens, ((0, 0), (0, most - tokens.shape[-1])), constant_values=-1)
            for tokens in (tokens_a, tokens_b)
        )
        # Position L + j has consumed the tokens 0 … j − 1.
        same = np.logical_and.accumulate((tokens_a == tokens_b) & (tokens_a >= 0), axis=-1).sum(-1)
        step = a.position_P[self.positions[0]][None] - a.length_U[self.units[0]][:, None]
        return np.asarray(both & (step >= 0) & (step <= same[:, None]), bool)


def unit_index(data: xr.Dataset, unit: int) -> dict[str, int]:
    """Where a unit lies in a phase: along ``reference``, and along ``producer`` where it has that."""
    if "producer" in data["captured"].dims:
        producer, reference = divmod(unit, data.sizes["reference"])
        return {"producer": producer, "reference": reference}
    return {"reference": unit}
