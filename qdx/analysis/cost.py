"""Cost: what quantization changes, against dense weights (format none), the figures that llama.cpp prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from qdx.analysis.section import Section, check
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.blocks import Block, Cell, Table, Text
from qdx.document.format import DASH, number, percent, plural, signed, span
from qdx.errors import QdxError, nearest
from qdx.plugins import register
from qdx.statistics import FEWEST_REFERENCES, Bools, Floats, ratio_interval, tails

# Free decode is not a text that two configs share.
TEXT_REGION = {"prefill": "content", "replay": "output"}
KL_LEVELS = (0.5, 0.9, 0.95, 0.99, 0.999)
DELTA_LEVELS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
NEEDED = ("captured", "token_id", "target_logit", "logsumexp", "top_id")
FORMULAS = (
    "Rows: the first repeat's, where both configs have one whose token is the text's: the snippet's in "
    "prefill, the shared continuation's in replay; all references together. p: the baseline; q: the config; "
    "x: the text's token.",
    "Perplexity: exp(−mean ln q(x)). Ratio: perplexity of the config / of the baseline, on the same rows.",
    "KL: Σ_v p_v (ln p_v − ln q_v) [nat]. Δp: 100 · (q(x) − p(x)) [percentage points]; above 0 the config "
    "finds the token likelier. RMS: √ mean Δp². Same top: share of rows whose likeliest token is the same "
    "(the lowest id of equal ones).",
)


@dataclass(frozen=True)
class Rows:
    """The compared rows of two configs, (reference, position) each."""

    used_RP: Bools
    own_RP: Floats  # ln q of the text's token
    base_RP: Floats  # ln p of it
    same_RP: Bools
    kl_RP: Floats  # NaN where not measured

    @property
    def delta(self) -> Floats:
        """Change of the token's probability in percentage points, (row,)."""
        own, base = self.own_RP[self.used_RP], self.base_RP[self.used_RP]
        return np.asarray(100 * np.exp(base) * np.expm1(own - base))  # tiny changes of large p stay exact


@register("analysis", "cost", title="Cost of quantization", check=check)
def cost(
    tree: xr.DataTree, baseline: str | None = None, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> Section:
    """Hold every config against a dense one: perplexity, divergence, the token's probability, the top token.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep; the divergence needs ``/metrics/kl``.
    baseline : str, optional
        Label of the config that the others are held against. Default: the first of format none.
    level, draws, seed
        Of the intervals; perplexity's and KL's are percentile bootstraps over references, NaN under 8 of
        them. That of the top token is Wilson's, over rows taken as independent.

    Returns
    -------
    Section
        Result over (phase, config[, percentile]): ``rows``, ``perplexity``, ``baseline_perplexity``,
        ``perplexity_ratio`` with ``_low``, ``_high``; ``kl_rows``, ``kl_mean`` with ``_low``, ``_high``,
        ``kl_percentile``, ``kl_greatest`` (nat); ``delta_p_mean``, ``_rms``, ``_least``, ``_greatest``,
        ``_percentile`` (percentage points); ``same_top`` with ``_low``, ``_high``. A percentile beyond which
        less than one row would lie is NaN. Empty without a dense config.

    Raises
    ------
    QdxError
        When `baseline` is not a config's label.

    Notes
    -----
    Source of the choice of figures: llama.cpp, ``llama-perplexity --kl-divergence``. It weights all rows
    equally, and so does this: a long reference counts for more than a short one.
    """
    view = View(tree)
    base = _baseline(view, baseline)
    others = [c for c in range(len(view.configs)) if c != base]
    phases = [p for p in view.phases if p in TEXT_REGION and _has_rows(view, p)]
    if base is None:
        return _section(
            xr.Dataset(),
            [Text("No dense config (format none) to hold the others against: sweep quant=none with them.")],
        )
    if not others or not phases:
        missing = "One config: nothing to hold against it." if not others else "Not measured: no such rows."
        return _section(xr.Dataset(), [Text(missing)])
    measured = [[_measure(_rows(view, p, base, c), level, draws, seed) for c in others] for p in phases]
    result = _dataset(measured, phases, [view.configs[c] for c in others])
    result.attrs = {
        "baseline": view.configs[base],
        "ci_prob": level,
        "ci_kind": "percentile bootstrap over references; same_top: Wilson over rows",
        "draws": draws,
        "seed": seed,
    }
    return _section(result, _blocks(view, result))


def _section(result: xr.Dataset, blocks: Sequence[Block]) -> Section:
    return Section("cost", "Cost of quantization", result, blocks=blocks, place="end")


def _baseline(view: View, label: str | None) -> int | None:
    if label is not None:
        if label not in view.configs:
            known = ", ".join(view.configs)
            raise QdxError(
                f"analysis.cost.baseline={label}: no config of this sweep, one of {known}"
                f"{nearest(label, view.configs)}"
            )
        return view.configs.index(label)
    formats = view.of_config("format")
    return formats.index("none") if "none" in formats else None


def _has_rows(view: View, phase: str) -> bool:
    group = view.group(phase)
    return all(name in group for name in NEEDED) and "producer" not in group.dims


def _rows(view: View, phase: str, base: int, config: int) -> Rows:
    group = view.group(phase).isel(repeat=0, config=[base, config])
    order = ("config", "reference", "position")
    captured, token, logit, total = (group[n].transpose(*order).values for n in NEEDED[:4])
    top = group["top_id"].isel(rank=0).transpose(*order).values
    text_RP = np.asarray(group["region"].transpose(*order[1:]).values, str) == TEXT_REGION[phase]
    ln_p = logit.astype(np.float64) - total
    used_RP = captured.astype(bool).all(0) & text_RP & (token >= 0).all(0) & (token[0] == token[1])
    used_RP &= np.isfinite(ln_p).all(0)
    distances = view.distances("kl", phase)
    kl_RP = np.full(used_RP.shape, np.nan) if distances is None else distances[base, config]
    return Rows(used_RP, ln_p[1], ln_p[0], top[0] == top[1], kl_RP)


def _measure(rows: Rows, level: float, draws: int, seed: int) -> dict[str, Floats]:
    from scipy.stats import binomtest

    used, nan = rows.used_RP, float("nan")
    count_R = used.sum(-1)
    count = int(count_R.sum())
    if not count:
        return {"rows": np.array(0)}
    change_R = np.where(used, rows.base_RP - rows.own_RP, 0.0).sum(-1)
    low, high = ratio_interval(change_R, count_R, tails(level), draws, seed)
    known = used & np.isfinite(rows.kl_RP)
    kl, delta = rows.kl_RP[known], rows.delta
    kl_low, kl_high = ratio_interval(
        np.where(known, rows.kl_RP, 0.0).sum(-1), known.sum(-1), tails(level), draws, seed
    )
    same = int(rows.same_RP[used].sum())
    top = binomtest(same, count).proportion_ci(level, method="wilson")
    found = {
        "rows": count,
        "perplexity": np.exp(-rows.own_RP[used].mean()),
        "baseline_perplexity": np.exp(-rows.base_RP[used].mean()),
        "perplexity_ratio": np.exp(change_R.sum() / count),
        "perplexity_ratio_low": np.exp(low),
        "perplexity_ratio_high": np.exp(high),
        "kl_rows": len(kl),
        "kl_mean": kl.mean() if len(kl) else nan,
        "kl_mean_low": kl_low,
        "kl_mean_high": kl_high,
        "kl_percentile": percentiles(kl, KL_LEVELS),
        "kl_greatest": kl.max() if len(kl) else nan,
        "delta_p_mean": delta.mean(),
        "delta_p_rms": np.sqrt(np.square(delta).mean()),
        "delta_p_least": delta.min(),
        "delta_p_greatest": delta.max(),
        "delta_p_percentile": percentiles(delta, DELTA_LEVELS),
        "same_top": same / count,
        "same_top_low": top[0],
        "same_top_high": top[1],
    }
    return {name: np.asarray(value) for name, value in found.items()}


def percentiles(values: Floats, levels: tuple[float, ...]) -> Floats:
    """Percentiles of `values` (n,), interpolated; NaN where less than one of them would lie beyond."""
    if not len(values):
        return np.full(len(levels), np.nan)
    beyond = np.minimum(levels, 1 - np.asarray(levels)) * len(values)
    return np.where(beyond >= 1 - 1e-9, np.quantile(values, levels), np.nan)


def _dataset(measured: list[list[dict[str, Floats]]], phases: list[str], configs: list[str]) -> xr.Dataset:
    meaning = {
        "rows": ("1", "rows compared"),
        "perplexity": ("1", "exp of the mean negative log-probability of the text's tokens"),
        "baseline_perplexity": ("1", "the same of the baseline, on the same rows"),
        "perplexity_ratio": ("1", "perplexity / the baseline's"),
        "kl_rows": ("1", "rows with a divergence"),
        "kl_mean": ("nat", "KL(baseline‖config), mean of rows"),
        "kl_percentile": ("nat", "KL(baseline‖config), percentile of rows"),
        "kl_greatest": ("nat", "KL(baseline‖config), greatest of rows"),
        "delta_p_mean": ("percent", "probability of the text's token minus the baseline's, mean of rows"),
        "delta_p_rms": ("percent", "root mean square of that difference"),
        "delta_p_least": ("percent", "least of those differences"),
        "delta_p_greatest": ("percent", "greatest of those differences"),
        "delta_p_percentile": ("percent", "percentile of those differences"),
        "same_top": ("1", "share of rows whose likeliest token is the baseline's"),
    }
    levels = {"kl_percentile": ("kl_level", KL_LEVELS), "delta_p_percentile": ("delta_p_level", DELTA_LEVELS)}
    variables = {}
    for name, (unit, what) in meaning.items():
        for end, of in (("", ""), ("_low", ", lower end of its interval"), ("_high", ", upper end")):
            found = [one[name + end] for row in measured for one in row if name + end in one]
            if not found:
                continue
            empty = np.full(found[0].shape, 0 if found[0].dtype.kind == "i" else np.nan)
            values = np.array([[one.get(name + end, empty) for one in row] for row in measured])
            dims = ("phase", "config", *([levels[name][0]] if name in levels else []))
            variables[name + end] = (dims, values, {"units": unit, "long_name": what + of})
    share = {"units": "1", "long_name": "share of rows at or under the percentile"}
    coords = {dim: (dim, np.array(values), share) for dim, values in levels.values()}
    return xr.Dataset(variables, {"phase": phases, "config": configs, **coords})


def _blocks(view: View, result: xr.Dataset) -> list[Block]:
    level = f"{result.attrs['ci_prob']:.0%} interval"
    base = view.names[view.configs.index(result.attrs["baseline"])]
    intervals = (
        f"{level}s: of perplexity and KL by bootstrap over references (none under {FEWEST_REFERENCES}); of "
        f"same top Wilson's, rows taken as independent. {DASH}: not measured, or a percentile beyond which "
        "less than one row lies."
    )
    blocks: list[Block] = [Text("\n".join([f"Baseline: {base}.", *FORMULAS, intervals]))]
    for phase in (str(p) for p in result["phase"].values):
        blocks += _phase_blocks(view, result.sel(phase=phase), phase, level)
    return blocks


def _phase_blocks(view: View, at: xr.Dataset, phase: str, level: str) -> list[Block]:
    title = PHASE_TITLES[phase]
    counts = sorted({int(v) for v in at["rows"].values})
    if not counts[-1]:
        return [Text(f"{title}: not measured, no row of the text in common")]
    rows = " to ".join(f"{v:,}" for v in dict.fromkeys((counts[0], counts[-1])))
    lines = [f"{title}: {rows} rows of {plural(len(view.references), 'reference')}"]
    coarse = view.measured("kl", phase)
    if coarse is None:
        lines.append("no KL: add kl to metric=[…]")
    elif int(coarse["kl"].attrs.get("coarse_rows", 0)):
        lines.append("KL is a lower bound: rows were kept as their top ids (capture=topk)")
    names = dict(zip(view.configs, view.names, strict=True))
    each = {names[str(c)]: at.sel(config=c) for c in at["config"].values}
    return [
        Text("\n".join(lines)),
        _perplexity(each, level, title),
        _divergence(each, level, title),
        _change(each, title),
        _change_levels(each, title),
    ]


def _perplexity(each: Mapping[str, xr.Dataset], level: str, phase: str) -> Table:
    rows = [
        [
            name,
            *(_five(float(one[n])) for n in ("perplexity", "baseline_perplexity", "perplexity_ratio")),
            _span(one, "perplexity_ratio", _five),
            percent(float(one["same_top"])),
            _span(one, "same_top", percent),
        ]
        for name, one in each.items()
    ]
    head = ["config", "perplexity", "baseline's", "ratio", level, "same top", level]
    return Table(f"Perplexity, and rows of the same likeliest token, {phase}", head, rows)


def _divergence(each: Mapping[str, xr.Dataset], level: str, phase: str) -> Table:
    rows: list[list[Cell]] = [
        [
            name,
            float(one["kl_mean"]),
            _span(one, "kl_mean", number),
            *(float(v) for v in one["kl_percentile"].values),
            float(one["kl_greatest"]),
        ]
        for name, one in each.items()
    ]
    head = ["config", "mean", level, *(_level(v) for v in KL_LEVELS), "greatest"]
    return Table(f"KL(baseline‖config) [nat], and its percentiles over rows, {phase}", head, rows)


def _change(each: Mapping[str, xr.Dataset], phase: str) -> Table:
    rows = [
        [
            name,
            signed(float(one["delta_p_mean"])),
            signed(float(one["delta_p_rms"])).lstrip("+"),
            *(signed(float(one[n])) for n in ("delta_p_least", "delta_p_greatest")),
        ]
        for name, one in each.items()
    ]
    return Table(f"Δp [percentage points], {phase}", ["config", "mean", "RMS", "least", "greatest"], rows)


def _change_levels(each: Mapping[str, xr.Dataset], phase: str) -> Table:
    rows = [
        [name, *(signed(float(v)) for v in one["delta_p_percentile"].values)] for name, one in each.items()
    ]
    head = ["config", *(_level(v) for v in DELTA_LEVELS)]
    return Table(f"Percentiles of Δp over rows [percentage points], {phase}", head, rows)


def _level(value: float) -> str:
    return "median" if value == 0.5 else f"{100 * value:g} %"


def _five(value: float) -> str:
    """Perplexities of one model are near each other: two more digits than other numbers."""
    return number(value, 5)


def _span(one: xr.Dataset, name: str, write: Callable[[float], str]) -> str:
    return span(float(one[f"{name}_low"]), float(one[f"{name}_high"]), write)
