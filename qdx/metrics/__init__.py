"""Distances between two next-token distributions: pure functions of two tensors, one value a position.

A metric takes ``p`` of `config` and ``q`` of `config_b`, both float64 (position, vocab), and returns float64
(position,). Its ``on`` says what the rows hold:

- ``"logprob"``: natural log-probabilities;
- ``"logit"``: the model's logits;
- ``"top"``: log-probabilities of the most likely tokens, (position, rank), best first, with their token ids
  as the keywords ``p_id`` and ``q_id``;
- ``"hidden"``: the last normed hidden state, (position, hidden).

`qdx.distances.measure` handles pairs, phases, blocks, alignment and what was not measured.

Its record (`qdx.plugins.plugin_of`) states, beside what `qdx.plugins.register` lists:

``on_self``
    The value for two equal rows. Where given, rows with equal hashes take it without arithmetic.
``nan_when``
    When the metric itself answers NaN; without it, a NaN from rows without one is an error.

A token that is impossible (−inf) in both rows is agreement; in one alone it may make a value infinite.
"""

from __future__ import annotations

from qdx.metrics.activations import projection, toploc_exponent, toploc_mantissa
from qdx.metrics.divergences import js, kl, kl_reverse, total_variation
from qdx.metrics.logits import margin, rank, rms_logit
from qdx.metrics.logprobs import l2, max_abs
from qdx.metrics.top import seed_l2, top1, topk_overlap

__all__ = [
    "js",
    "kl",
    "kl_reverse",
    "l2",
    "margin",
    "max_abs",
    "projection",
    "rank",
    "rms_logit",
    "seed_l2",
    "top1",
    "topk_overlap",
    "toploc_exponent",
    "toploc_mantissa",
    "total_variation",
]
