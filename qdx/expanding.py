"""Logits from the hidden states that ``capture=hidden`` kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.dataset.layout import PHASES
from qdx.errors import QdxError

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
    from qdx.models import dense_state

    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise QdxError(f"expand: {path} is no checkpoint: {error.strerror} (config.json)") from error
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
