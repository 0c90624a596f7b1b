"""Which positions are planned."""

from __future__ import annotations

import numpy as np
import pytest

from qdx.capture import CaptureSettings
from qdx.capture.plan import plan
from qdx.dataset.layout import region_of
from qdx.errors import QdxError
from tests.helpers import SmallReference, small_references


def reference(prefix: int, content: int, suffix: int, continuation: int = 8) -> SmallReference:
    ids = np.zeros(prefix + content + suffix, np.int32)
    return SmallReference("ref_0", ids, prefix, content, suffix, np.zeros(continuation, np.int32), "")


def prefill(prefix: int, content: int, suffix: int, positions: int | str) -> list[int]:
    planned = plan([reference(prefix, content, suffix)], prefill_positions=positions, output_tokens=4)
    return planned["prefill"][0].tolist()


def test_template_last_content_rows_and_the_first_output_are_kept() -> None:
    assert prefill(3, 10, 2, 4) == [1, 2, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("positions", [10, 11, 10_000, "all"])
def test_more_positions_than_content_keep_everything_once(positions) -> None:
    assert prefill(3, 10, 2, positions) == list(range(1, 16))


def test_no_content_position_may_be_asked_for() -> None:
    assert prefill(3, 10, 2, 0) == [1, 2, 13, 14, 15]


@pytest.mark.parametrize("positions", [4, 10, "all", 0])
def test_without_a_template_position_0_is_not_predicted_and_the_first_output_is(positions) -> None:
    kept = prefill(0, 10, 0, positions)
    assert kept == sorted(set(kept)) and kept[0] >= 1 and kept[-1] == 10
    assert prefill(0, 10, 0, "all") == list(range(1, 11))


def test_decode_and_replay_begin_one_after_the_first_output() -> None:
    planned = plan([reference(3, 10, 2)], prefill_positions=4, output_tokens=5)
    assert planned["decode"][0].tolist() == planned["replay"][0].tolist() == [16, 17, 18, 19]
    assert planned["decode"][0].dtype == np.int32


def test_replay_ends_with_the_continuation() -> None:
    for tokens, expected in ((3, [16, 17]), (1, []), (0, [])):
        planned = plan([reference(3, 10, 2, continuation=tokens)], prefill_positions=4, output_tokens=8)
        assert planned["replay"][0].tolist() == expected


def test_one_output_token_needs_no_decode() -> None:
    planned = plan(small_references(), prefill_positions=4, output_tokens=1)
    assert [len(p) for p in planned["decode"]] == [0, 0, 0]


def test_region_is_the_part_that_the_predicted_token_is_in() -> None:
    regions = region_of(reference(3, 4, 2), np.array([1, 2, 3, 6, 7, 8, 9, 10])).tolist()
    assert regions == ["prefix", "prefix", "content", "content", "suffix", "suffix", "output", "output"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "half"),
        ("k", 0),
        ("components", 0),
        *(("prefill_positions", wrong) for wrong in (-1, "some", 1.5, True)),
    ],
)
def test_wrong_capture_settings_are_named(key, value) -> None:
    with pytest.raises(QdxError, match=rf"capture\.{key}={value}: "):
        CaptureSettings(**{key: value})
