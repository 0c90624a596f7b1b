"""Pair what is compared: metrics held to their contract, the rows of a phase, and pairs of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from qdx.dataset.checked import open_groups
from qdx.errors import QdxError
from qdx.plugins import code_of, keywords_of, plugin_of
from qdx.statistics import Bools, Floats, Ints, first_difference, rows_before_split

HIDDEN_REHEARSED = 512  # elements of a made-up hidden state

Source = tuple[int, int]  # config, repeat


class MetricError(QdxError):
    """A metric raised or broke its contract; nothing else is wrong."""


@dataclass(frozen=True)
class Measure:
    """A metric with what its record says of it."""

    name: str
    call: Callable[..., Any]
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, call: Callable[..., Any]) -> Measure:
        """Take a metric, registered under `name` or not, after a look at what it asks for."""
        meta = plugin_of(call).meta
        if isinstance(call, partial):
            # Hydra's partial checks its target by a policy at every call: 0.5 ms, as long as a row takes.
            call = partial(call.func, *call.args, **call.keywords)
        return cls(name, call, meta)

    @property
    def on(self) -> str:
        """Return what its rows hold: logprob, logit, top or hidden."""
        return str(self.meta["on"])

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what it is given as keywords beside its rows; see `qdx.plugins.register`."""
        return tuple(self.meta["needs"])

    @property
    def coarse(self) -> bool:
        """Return whether it takes coarsened rows. Those have lost the columns that ``target`` counts."""
        return bool(self.meta["coarse"]) and self.on in ("logprob", "logit") and "target" not in self.needs

    @property
    def on_self(self) -> float | None:
        """Its value for two equal rows; None when it does not say."""
        return self.meta.get("on_self")

    def __call__(self, p: Tensor, q: Tensor, **given: Tensor) -> Floats:
        """Call the metric with what it needs of `given`, and hold it to its contract."""
        try:
            value = self.call(p, q, **{key: given[key] for key in keywords_of(self.meta)})
        except QdxError as error:
            raise MetricError(str(error)) from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            shape = tuple(p.shape)
            raise MetricError(f"metric {self.name!r} raised {what} (on rows of shape {shape})") from error
        if not isinstance(value, Tensor):
            raise MetricError(f"metric {self.name!r} returned a {type(value).__name__}: return a tensor")
        if value.shape != p.shape[:1] or value.dtype != torch.float64 or value.device != p.device:
            raise MetricError(
                f"metric {self.name!r} returned {value.dtype} {tuple(value.shape)} on {value.device} for "
                f"rows of shape {tuple(p.shape)}: return torch.float64 ({len(p)},) on {p.device}"
            )
        if not self.meta.get("nan_when") and bool(value.isnan().any()):
            raise MetricError(
                f"metric {self.name!r} returned NaN for rows without one: correct it or register nan_when"
            )
        return np.asarray(value.cpu().numpy())

    def rehearse(self, vocab: int, k: int) -> None:
        """Call the metric on two made-up rows, so that what breaks its contract shows before a model runs.

        Parameters
        ----------
        vocab : int
            Logits in a row.
        k : int
            How many of the greatest are kept.

        Raises
        ------
        QdxError
            Naming the metric and what it did.
        """
        generator = torch.Generator().manual_seed(0)
        width = HIDDEN_REHEARSED if self.on == "hidden" else vocab
        p, q = (torch.randn(2, width, generator=generator, dtype=torch.float64) for _ in "pq")
        given = {"target": torch.tensor([0, vocab - 1]), "position": torch.tensor([1, 2])}
        if self.on in ("logprob", "top"):
            p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
            given |= {"p_prob": p.exp(), "q_prob": q.exp()}
        if self.on == "top":
            (p, p_id), (q, q_id) = (row.topk(min(k, vocab), -1) for row in (p, q))
            given |= {"p_id": p_id, "q_id": q_id}
        self(p, q, **given)

    def attrs(self, what: str = "") -> dict[str, Any]:
        """Attributes of its variables; `what` is added to the long name."""
        function = getattr(self.call, "func", self.call)
        summary = (inspect.getdoc(function) or self.name).splitlines()[0].rstrip(".")
        stated = {key: self.meta[key] for key in ("units", "higher_means", "formula", "on")}
        options = json.dumps(getattr(self.call, "keywords", {}), sort_keys=True)
        return {**stated, "long_name": summary + what, "options": options}


@dataclass(frozen=True)
class PhaseRows:
    """Read what a sweep file holds of one phase, without full rows.

    Axes: C config, D repeat, R reference, P position, T output token.
    """

    name: str
    coords: xr.Dataset  # labels, coordinates on config, region
    captured_CDRP: Bools
    hash_CDRP: NDArray[np.uint64]
    logsumexp_CDRP: Floats
    token_id_CDRP: NDArray[np.int32]
    top_id_CDRPK: NDArray[np.int32]
    top_logit_CDRPK: NDArray[np.float32]
    position_P: Ints
    length_R: Ints
    outputs_CDRT: Ints | None  # in decode only
    broken_CDRP: Bools  # the greatest logits or their sum are NaN, and not both: not what was written

    @classmethod
    def read(cls, target: Path, name: str) -> PhaseRows:
        """Read a phase of a merged sweep file."""
        order = ("config", "repeat", "reference", "position")
        wanted = [f"/{name}", "/references", *(["/output"] if name == "decode" else [])]
        groups = open_groups(target, groups=wanted)
        try:
            data = groups[f"/{name}"]
            coords = data.coords.to_dataset().load()
            scalars = ("captured", "row_hash", "logsumexp", "token_id")
            captured, row_hash, logsumexp, token_id = (data[key].transpose(*order).values for key in scalars)
            top_id, top_logit = (
                data[key].transpose(*order, "rank").values for key in ("top_id", "top_logit")
            )
            length = groups["/references"]["length"].sel(reference=coords["reference"].values).values
            outputs = None
            if name == "decode":
                tokens = groups["/output"]["token_id"].sel({key: coords[key].values for key in order[:3]})
                outputs = tokens.transpose(*order[:3], "output_token").values.astype(np.int64)
        finally:
            for group in groups.values():
                group.close()
        captured = captured.astype(bool)
        # A model's own NaN is in both: it is sorted before every number.
        overflow = ((np.isnan(top_logit) | np.isposinf(top_logit)) & (top_id >= 0)).any(-1)
        broken = captured & (overflow == np.isfinite(logsumexp))
        return cls(
            name,
            coords,
            # A row with an infinite or NaN sum has no distance to anything: it is not measured.
            captured & np.isfinite(logsumexp) & ~broken,
            row_hash.astype(np.uint64),
            logsumexp.astype(np.float64),
            token_id,
            top_id,
            top_logit,
            coords["position"].values.astype(np.int64),
            length.astype(np.int64),
            outputs,
            broken,
        )

    def measurable(self, a: Source, b: Source) -> Bools:
        """Rows (reference, position) that both have; in free decode, only where both consumed the same."""
        one, other = self.captured_CDRP[a], self.captured_CDRP[b]
        if self.outputs_CDRT is None:
            return np.asarray(one & other)
        split_R = first_difference(self.outputs_CDRT[a], self.outputs_CDRT[b])
        rows = zip(one, other, self.length_R, split_R, strict=True)
        return np.stack([rows_before_split(x, y, self.position_P, int(n), int(d)) for x, y, n, d in rows])

    def equal(self, a: Source, b: Source) -> Bools:
        """Return whether two rows have equal hashes, (reference, position).

        Hashes are of bit patterns: of two data types they say nothing, and nothing is equal.
        """
        dtype_C = self.coords["dtype"].values
        return np.asarray((self.hash_CDRP[a] == self.hash_CDRP[b]) & (dtype_C[a[0]] == dtype_C[b[0]]))

    def top(self, source: Source, reference: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and ids (position, rank) of the greatest logits, and logsumexp (position,)."""
        at = (*source, reference)
        logsumexp_P = torch.from_numpy(self.logsumexp_CDRP[at])
        logit_PK = torch.from_numpy(self.top_logit_CDRPK[at]).to(torch.float64)
        id_PK = torch.from_numpy(self.top_id_CDRPK[at]).to(torch.int64)
        return logit_PK - logsumexp_P[:, None], id_PK, logsumexp_P

    def beside(self, source: Source, reference: int, index: Ints, device: torch.device) -> dict[str, Tensor]:
        """Return what metrics may need beside rows (n, …) at `index` (n,) of the position axis."""
        target = self.token_id_CDRP[(*source, reference)][index].astype(np.int64)
        position = self.position_P[index]
        return {
            "target": torch.from_numpy(target).to(device),
            "position": torch.from_numpy(position).to(device),
        }


@dataclass
class Pair:
    """Two sources of rows, where they can be compared, and their distances (reference, position)."""

    a: Source
    b: Source
    rows_RP: Bools  # measurable
    equal_RP: Bools
    coarse: bool  # the full rows of one of them were not kept
    hidden: bool  # the hidden states of both were kept
    value: dict[str, Floats] = field(default_factory=dict)
    reverse: dict[str, Floats] = field(default_factory=dict)  # from b to a; of pairs of configs
    shared_RP: NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        phase: PhaseRows,
        a: Source,
        b: Source,
        *,
        coarse: bool,
        hidden: bool,
        measures: Sequence[Measure],
    ) -> Pair:
        """Make room for the distances of two sources and fill in those of equal rows."""
        pair = cls(a, b, phase.measurable(a, b), phase.equal(a, b), coarse, hidden)
        for measure in measures:
            for results in (pair.value, pair.reverse) if a[0] != b[0] else (pair.value,):
                results[measure.name] = np.full(pair.rows_RP.shape, np.nan)
                if measure.on_self is not None and measure.on != "hidden":
                    results[measure.name][pair.rows_RP & pair.equal_RP] = measure.on_self
        if coarse:
            pair.shared_RP = np.full(pair.rows_RP.shape, -1, np.int32)
        return pair

    def todo(self, measure: Measure) -> Bools:
        """Rows that need arithmetic, (reference, position).

        A hash is of logits: of hidden states it says nothing.
        """
        computed = measure.on_self is None or measure.on == "hidden"
        return self.rows_RP if computed else self.rows_RP & ~self.equal_RP

    def fill(
        self,
        measure: Measure,
        reference: int,
        index: Ints,
        a: tuple[Tensor, Mapping[str, Tensor]],
        b: tuple[Tensor, Mapping[str, Tensor]],
    ) -> None:
        """Measure rows that lie at `index` (n,) of the position axis.

        Each side is its rows (n, …) and what belongs to them: ``target``, ``position``, and maybe ``id`` and
        ``prob``.
        """
        self.value[measure.name][reference, index] = there = _directed(measure, a, b)
        if not self.reverse:
            return
        same = "target" not in measure.needs or torch.equal(a[1]["target"], b[1]["target"])
        if not (measure.meta["symmetric"] and same):
            there = _directed(measure, b, a)
        self.reverse[measure.name][reference, index] = there


def _directed(
    measure: Measure, a: tuple[Tensor, Mapping[str, Tensor]], b: tuple[Tensor, Mapping[str, Tensor]]
) -> Floats:
    """Call a metric from a to b: a's target is the target."""
    (p, p_given), (q, q_given) = a, b
    both = {
        f"{side}_{key}": row for side, own in (("p", p_given), ("q", q_given)) for key, row in own.items()
    }
    return measure(p, q, **p_given, **both)


def pairs_of(
    phase: PhaseRows,
    has_rows_C: Sequence[bool],
    has_hidden_C: Sequence[bool],
    measures: Sequence[Measure],
) -> list[Pair]:
    """List the pairs of first repeats, each config with itself too, then the repeat pairs of each config."""
    configs, repeats = phase.captured_CDRP.shape[:2]
    sources = [((a, 0), (b, 0)) for a in range(configs) for b in range(a, configs)]
    sources += [((c, d), (c, e)) for c in range(configs) for d, e in combinations(range(repeats), 2)]
    return [
        Pair.of(
            phase,
            a,
            b,
            coarse=not (has_rows_C[a[0]] and has_rows_C[b[0]]),
            hidden=has_hidden_C[a[0]] and has_hidden_C[b[0]],
            measures=measures,
        )
        for a, b in sources
    ]


def dataset_of(phase: PhaseRows, pairs: Sequence[Pair], measure: Measure) -> xr.Dataset:
    """Return the group ``/metrics/<metric>/<phase>``."""
    configs, repeats, *rest = phase.captured_CDRP.shape
    numbers = list(combinations(range(repeats), 2))
    value_CCRP = np.full((configs, configs, *rest), np.nan)
    repeat_CQRP = np.full((configs, len(numbers), *rest), np.nan)
    shared_CCRP = np.full((configs, configs, *rest), -1, np.int32)
    expected = {"value": 0, "repeat": 0}
    coarse = {"value": 0, "repeat": 0}
    for pair in pairs:
        (a, d), (b, e) = pair.a, pair.b
        either = int((phase.captured_CDRP[pair.a] | phase.captured_CDRP[pair.b]).sum())
        coarsened = pair.coarse and measure.coarse
        merged = int((np.isfinite(pair.value[measure.name]) & ~pair.equal_RP).sum()) if coarsened else 0
        if d != e:
            repeat_CQRP[a, numbers.index((d, e))] = pair.value[measure.name]
            kind, ways = "repeat", 1
        else:
            value_CCRP[a, b] = pair.value[measure.name]
            if a != b:
                value_CCRP[b, a] = pair.reverse[measure.name]
            if pair.shared_RP is not None:
                shared_CCRP[a, b] = shared_CCRP[b, a] = pair.shared_RP
            kind, ways = "value", 2 if a != b else 0
        expected[kind] += ways * either
        coarse[kind] += ways * merged
    off_diagonal = ~np.eye(configs, dtype=bool)
    variables = {
        measure.name: (
            ("config", "config_b", "reference", "position"),
            value_CCRP,
            {
                **measure.attrs(),
                **_coverage(value_CCRP, value_CCRP[off_diagonal], expected["value"]),
                "coarse_rows": coarse["value"],
            },
        ),
        "repeat_distance": (
            ("config", "repeat_pair", "reference", "position"),
            repeat_CQRP,
            {
                **measure.attrs(", between repeats"),
                **_coverage(repeat_CQRP, repeat_CQRP, expected["repeat"]),
                "coarse_rows": coarse["repeat"],
            },
        ),
    }
    if any(pair.coarse for pair in pairs):
        about = "ids among the greatest logits of both rows; -1 where full rows were compared or nothing was"
        shared = (
            ("config", "config_b", "reference", "position"),
            shared_CCRP,
            {"units": "1", "long_name": about},
        )
        variables["shared_ids"] = shared
    labels = phase.coords["config"].values
    names = {
        "config_b": (
            "config_b",
            labels,
            {"units": "1", "long_name": "label of the config that is compared with"},
        ),
        "repeat_pair": (
            "repeat_pair",
            np.array([f"{d}~{e}" for d, e in numbers], object),
            {"units": "1", "long_name": "numbers of the two repeats"},
        ),
    }
    return xr.Dataset(
        variables,
        coords={**phase.coords.drop_vars("repeat", errors="ignore").coords, **names},
        attrs=code_of(measure.call),
    )


def _coverage(values: Floats, compared: Floats, expected: int) -> dict[str, Any]:
    """Turn infinite values into NaN, in place, and return the counts that become attributes."""
    infinite = int(np.isinf(compared).sum())
    measured = int(np.isfinite(compared).sum())
    values[np.isinf(values)] = np.nan
    return {
        "coverage": f"{measured} of {expected} rows measured",
        "not_measured": expected - measured,
        "infinite": infinite,
    }
