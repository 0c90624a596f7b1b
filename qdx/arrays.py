"""Quantities that are computed on access, as functions of a phase's Dataset (`qdx.accessor` calls them).

All of them are lazy where their input is: a variable in dask chunks gives a result in dask chunks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.dataset.layout import PHASES
from qdx.errors import QdxError, lacking, nearest
from qdx.plugins import find, plugin_of

Metric = str | Callable[..., Any]
ROW = ("reference", "position")


def logprob(data: xr.Dataset, of: Literal["target", "top", "vocab"] = "target") -> xr.DataArray:
    """Return natural log-probabilities, logit − logsumexp.

    Parameters
    ----------
    data : xarray.Dataset
        A phase: ``tree["replay"].to_dataset()``.
    of : {"target", "top", "vocab"}
        Of ``token_id``, of the greatest logits (adds ``rank``), or of every token (adds ``vocab``; needs full
        rows).

    Returns
    -------
    xarray.DataArray
        float64 (config, repeat, reference, position), nat; NaN where not captured.
    """
    variables = {"target": "target_logit", "top": "top_logit", "vocab": "logit"}
    variable = variables.get(of)
    if variable is None:
        raise QdxError(f"logprob of {of!r}: one of {', '.join(variables)}{nearest(str(of), variables)}")
    value = _variable(data, variable).astype(np.float64) - _variable(data, "logsumexp")
    about = {"target": "token_id", "top": "the greatest logits", "vocab": "every token"}[of]
    return value.rename("logprob").assign_attrs(units="nat", long_name=f"log-probability of {about}")


def margin(data: xr.Dataset) -> xr.DataArray:
    """Return the greatest logit minus the target's.

    Parameters
    ----------
    data : xarray.Dataset
        A phase.

    Returns
    -------
    xarray.DataArray
        float64 (config, repeat, reference, position), nat, ≥ 0; NaN where not captured.
    """
    greatest = _variable(data, "top_logit").isel(rank=0, drop=True).astype(np.float64)
    value = greatest - _variable(data, "target_logit")
    return value.rename("margin").assign_attrs(units="nat", long_name="greatest logit minus that of token_id")


def pairs(data: xr.Dataset, metric: Metric = "l2", **options: Any) -> xr.DataArray:
    """Measure every config against every config, first repeat of each.

    Parameters
    ----------
    data : xarray.Dataset
        A phase with the rows that the metric takes: of a run or sweep *folder*, which has full rows. Not free
        decode, where a pair can be compared up to the first differing token only.
    metric : str or callable
        Name of a shipped metric or of a plug-in, or a registered function.
    **options
        Options of the metric.

    Returns
    -------
    xarray.DataArray
        float64 (config, config_b, reference, position); NaN where one of the two has no row.

    Raises
    ------
    QdxError
        For an unknown metric, for free decode, without the rows, or when the metric raises or returns
        anything but one float64 a row (for chunked input when the result is computed).
    """
    one = data.isel(repeat=0, drop=True)
    return _distance(one, one.rename(config="config_b"), data, metric, options)


def against(data: xr.Dataset, config: str, metric: Metric = "l2", **options: Any) -> xr.DataArray:
    """Measure every config against one of them, first repeat of each; see `pairs`.

    Parameters
    ----------
    data : xarray.Dataset
        A phase.
    config : str
        Label of the config that takes the place of ``config_b``.
    metric : str or callable
    **options
        Options of the metric.

    Returns
    -------
    xarray.DataArray
        float64 (config, reference, position).
    """
    check_label(data, config)
    one = data.isel(repeat=0, drop=True)
    return _distance(one, one.sel(config=config, drop=True), data, metric, options)


def noise_floor(data: xr.Dataset, metric: Metric = "l2", **options: Any) -> xr.DataArray:
    """Measure every two repeats of each config; see `pairs`.

    Parameters
    ----------
    data : xarray.Dataset
        A phase.
    metric : str or callable
    **options
        Options of the metric.

    Returns
    -------
    xarray.DataArray
        float64 (config, repeat_pair, reference, position); ``repeat_pair`` is empty where nothing was run
        again.
    """
    numbers = list(combinations(range(data.sizes["repeat"]), 2))
    first, second = (
        data.isel(repeat=xr.DataArray([n[i] for n in numbers], dims="repeat_pair")) for i in (0, 1)
    )
    names = [f"{int(data['repeat'][a])}~{int(data['repeat'][b])}" for a, b in numbers]
    value = _distance(first.drop_vars("repeat"), second.drop_vars("repeat"), data, metric, options)
    return value.assign_coords(repeat_pair=np.array(names, object))


def check_label(data: xr.Dataset, config: str) -> None:
    """Raise a `QdxError` when no config has that label."""
    labels = [str(label) for label in data["config"].values]
    if config not in labels:
        raise QdxError(f"no config is labelled {config!r}, only {', '.join(labels)}{nearest(config, labels)}")


def _variable(data: xr.Dataset, name: str) -> xr.DataArray:
    if name in data:
        return data[name]
    if name == "logit":
        raise QdxError(
            "no full rows here: sweep.nc and capture=topk hold none. Open the sweep's or the run's folder, "
            "or take what is stored, tree.qdx.pairs(metric, phase)"
        )
    raise QdxError(
        f"this Dataset has no variable {name!r}: take a phase, such as tree['replay'].to_dataset()"
    )


def _distance(
    a: xr.Dataset, b: xr.Dataset, whole: xr.Dataset, metric: Metric, options: dict[str, Any]
) -> xr.DataArray:
    """Call a metric on the rows of two datasets, broadcast against each other."""
    try:
        function = find("metric", metric) if isinstance(metric, str) else metric
    except ModuleNotFoundError as error:
        raise QdxError(f"metric {metric!r}: {lacking(error) or error}") from error
    record = plugin_of(function)
    if whole.attrs.get("phase") == "decode":
        raise QdxError(
            "free decode is compared up to the first differing token, which its rows alone do not tell: take "
            f"what is stored, tree.qdx.pairs({record.name!r}, phase='decode')"
        )
    on = record.meta["on"]
    core = {"top": "rank", "hidden": "element"}.get(on, "vocab")
    if on == "top":
        inputs = [logprob(x, "top") for x in (a, b)] + [_variable(x, "top_id") for x in (a, b)]
    else:
        # Log-probabilities by the recorded sum, as a sweep's distances take them (`qdx.distances.blocks`).
        taken: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
            "logprob": partial(logprob, of="vocab"),
            "hidden": hidden_of,
        }
        inputs = [taken[on](x) if on in taken else _variable(x, "logit") for x in (a, b)]
    cores = [[core]] * len(inputs)
    wide = len(inputs)
    if set(record.meta["needs"]) & {"target", "position"}:
        inputs += [_variable(a, "token_id"), whole["position"]]
        cores += [[], []]
    # As in a sweep, a row with an infinite or NaN sum has no distance to anything.
    inputs += [x["captured"] & np.isfinite(_variable(x, "logsumexp")) for x in (a, b)]
    # Without coordinates beside the index: xarray would compute chunked ones to see whether they agree.
    inputs = [x.reset_coords(drop=True) for x in inputs]
    inputs[-2:] = [inputs[-2] & inputs[-1]]
    inputs = [x.chunk({core: -1}) if x.chunks is not None and core in x.dims else x for x in inputs]
    value: xr.DataArray = xr.apply_ufunc(
        lambda *rows: _rows(rows[:wide], rows[wide:-1], rows[-1], partial(function, **options)),
        *inputs,
        input_core_dims=[*cores, []],
        dask="parallelized",
        output_dtypes=[np.float64],
        keep_attrs=False,
    )
    value = value.where(np.isfinite(value)).rename(record.name)
    stated = {key: record.meta[key] for key in ("units", "higher_means", "formula")}
    order = [name for name in ("config", "config_b", "repeat_pair", *ROW) if name in value.dims]
    summary = (function.__doc__ or record.name).strip().splitlines()[0].rstrip(".")
    beside = [name for name in whole.coords if name not in whole.dims]
    kept = {name: whole[name] for name in beside if set(whole[name].dims) <= {*order}}
    return value.transpose(*order).assign_coords(kept).assign_attrs(stated, long_name=summary)


def _rows(
    rows: tuple[np.ndarray[Any, Any], ...],
    beside: tuple[np.ndarray[Any, Any], ...],
    present: np.ndarray[Any, Any],
    function: Callable[..., Any],
) -> Any:
    """Call a metric on blocks (…, position, core) that broadcast, a matrix (position, core) at a time.

    `beside` is empty, or token ids (…, position) and positions (position,); `present` (…, position) says
    which rows to measure. The metric is held to its contract as in a sweep.
    """
    import torch

    from qdx.distances.pairs import Measure

    measure = Measure.of(plugin_of(function).name, function)
    shape = np.broadcast_shapes(*(block.shape[:-1] for block in rows))
    blocks = [np.broadcast_to(block, (*shape, block.shape[-1])) for block in rows]
    numbers = [np.broadcast_to(block, shape) for block in beside]
    value = np.full(shape, np.nan)
    for index in np.ndindex(shape[:-1]):
        matrices = [block[index] for block in blocks]
        # A config without full rows has NaN in the place of those that others have.
        kept = np.broadcast_to(present, shape)[index] & ~np.isnan(matrices[:2]).any((0, -1))
        if not kept.any():
            continue
        p, q = (torch.from_numpy(matrix[kept].astype(np.float64, copy=False)) for matrix in matrices[:2])
        ids = [torch.from_numpy(matrix[kept].astype(np.int64)) for matrix in matrices[2:]]
        given = dict(zip(("p_id", "q_id"), ids, strict=False))
        for key, block in zip(("target", "position"), numbers, strict=False):
            given[key] = torch.from_numpy(block[index][kept].astype(np.int64))
        if "prob" in measure.needs:
            given |= {"p_prob": p.exp(), "q_prob": q.exp()}
        value[index][kept] = measure(p, q, **given)
    return value


# Keys of a config.json whose models do more to a hidden state than multiply it.
SHAPED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
_POSITIONS = 8  # rows of logits that are made together


def expand(tree: xr.DataTree, lm_head: Any) -> xr.DataTree:
    """Recompute logits from hidden states, lazily.

    Parameters
    ----------
    tree : xarray.DataTree
        What `qdx.open` returned of a folder whose runs have ``capture=hidden``.
    lm_head : array, Tensor, str or Path
        The head's weight (vocab, hidden), or the folder of a checkpoint that holds it.

    Returns
    -------
    xarray.DataTree
        With ``logit``, float32 (config, repeat, reference, position, vocab), in every phase that has
        ``hidden``; in dask chunks, computed when read.

    Raises
    ------
    QdxError
        When no phase has hidden states, the weight has another shape, or the checkpoint's model does more to
        a hidden state than multiply it (scales or caps its logits).

    Notes
    -----
    The products are summed in float32, in an order of their own, and not rounded to the model's dtype: they
    are near the recorded logits and not bit-equal to them. Their attribute ``recomputed`` says so; never
    compare them by hash.

    Examples
    --------
    >>> tree = qdx.expand(qdx.open("outputs/…"), "path/to/checkpoint")  # doctest: +SKIP
    >>> tree["replay/logit"].isel(position=0).values  # doctest: +SKIP
    """
    phases = [name for name in PHASES if name in tree.children and "hidden" in tree[name].variables]
    if not phases:
        raise QdxError("expand: no phase holds hidden states: open the folder of runs with capture=hidden")
    weight_VH = _weight(lm_head)
    expanded = tree.copy()
    for name in phases:
        hidden = hidden_of(tree[name].to_dataset())
        width = hidden.sizes["element"]
        if weight_VH.ndim != 2 or weight_VH.shape[1] != width:
            raise QdxError(
                f"expand: lm_head has shape {weight_VH.shape}, hidden states have {width} elements: "
                f"give (vocab, {width})"
            )
        vocab = int(tree.attrs.get("vocab", len(weight_VH)))
        if len(weight_VH) < vocab:
            raise QdxError(
                f"expand: lm_head has {len(weight_VH)} rows, the recorded vocabulary {vocab}: use it"
            )
        logit = xr.apply_ufunc(
            _product,
            # However the file is cut: a row of logits is many times as long as its hidden state.
            hidden.chunk({"config": 1, "repeat": 1, "reference": 1, "position": _POSITIONS, "element": -1}),
            kwargs={"weight_VH": weight_VH[:vocab]},
            input_core_dims=[["element"]],
            output_core_dims=[["vocab"]],
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"vocab": vocab}},
        )
        logit.attrs = {
            "units": "nat",
            "long_name": "logits of the whole vocabulary, recomputed from hidden states",
            "recomputed": "hidden · lm_headᵀ in float32: near the recorded logits, never compared by hash",
        }
        expanded[name] = expanded[name].assign(logit=logit)
    return expanded


def hidden_of(data: xr.Dataset) -> xr.DataArray:
    """Return the hidden states of a phase without coordinates beside indexes."""
    if "hidden" not in data.variables:
        raise QdxError("no hidden states here: they are in the folder of a run with capture=hidden")
    return data["hidden"].reset_coords(drop=True)


def _product(hidden: NDArray[np.float32], weight_VH: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(hidden.astype(np.float32, copy=False) @ weight_VH.T)


def _weight(lm_head: Any) -> NDArray[np.float32]:
    if isinstance(lm_head, str | Path):
        return _of_checkpoint(Path(lm_head).expanduser())
    if hasattr(lm_head, "detach"):  # numpy knows no bfloat16
        lm_head = lm_head.detach().cpu().float().numpy()
    return np.asarray(lm_head, np.float32)


def _of_checkpoint(path: Path) -> NDArray[np.float32]:
    try:
        from qdx.models import dense_state
    except ModuleNotFoundError as error:
        raise QdxError(f"expand: {lacking(error) or error}") from error
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise QdxError(f"expand: {path} is not a checkpoint: {error.strerror} (config.json)") from error
    for key in SHAPED:
        if config.get(key) not in (None, 1, 1.0):
            raise QdxError(
                f"expand: {path} has {key}={config[key]} in config.json: its logits are more than "
                f"hidden · lm_headᵀ; multiply the hidden states yourself and apply it"
            )
    wanted = "embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    for name, tensor in dense_state(path):
        if name.endswith(wanted):
            return np.asarray(tensor.float().numpy())
    raise QdxError(f"expand: {path} holds no {wanted}: give the weight itself, an array (vocab, hidden)")
