"""How K is cut: against a walk over the thread blocks, and every output element covered once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qdx.kernels.machete import schedule, stream_k
from qdx.kernels.marlin import launches, stripes, tile_shape
from qdx.kernels.partition import Region

ROWS = st.one_of(st.integers(1, 80), st.integers(200, 1500))


def assert_covers(parts: tuple[Region, ...], rows: int, columns: int, in_features: int, tile_k: int) -> None:
    seen_MN = torch.zeros(rows, columns, dtype=torch.int64)
    for part in parts:
        assert part.cuts[0] == 0
        assert part.cuts[-1] == in_features
        assert all(cut % tile_k == 0 for cut in part.cuts)
        assert list(part.cuts) == sorted(set(part.cuts))
        for start, stop in part.columns:
            seen_MN[part.rows[0] : part.rows[1], start:stop] += 1
    assert (seen_MN == 1).all()


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 24), st.integers(1, 70), st.sampled_from([-1, 32, 64, 128]), st.integers(1, 200))
@example(40, 4, 4, 128, 3)  # three K tiles a stripe would start one inside a group: four
def test_marlin_stripes_are_not_what_the_thread_blocks_walk(
    rows: int, in_blocks: int, out_blocks: int, group_size: int, sm_count: int
) -> None:
    in_features, out_features = 128 * in_blocks, 64 * out_blocks
    covered = 0
    for first, count, tile_k, parts in stripes(rows, in_features, out_features, group_size, sm_count):
        assert first == covered
        covered += count
        assert_covers(parts, count, out_features, in_features, tile_k)
        _, tile_n = tile_shape(count, out_features, sm_count)
        block_rows = min(-(-count // 16), 4) * 16
        column_tiles, k_tiles = out_features // tile_n, in_features // tile_k
        tiles = max(1, count // block_rows) * column_tiles
        # Every thread block in turn takes `share` K tiles off the striped output tiles, tile by tile.
        striped = tiles
        while striped > sm_count and striped - sm_count >= sm_count:
            striped -= sm_count
        if striped > sm_count and (striped - sm_count) * 3 > sm_count:
            striped -= sm_count
        share = -(-striped * k_tiles // sm_count)
        if group_size > tile_k:
            share += -share % (group_size // tile_k)
        starts: list[set[int]] = [{0} for _ in range(tiles)]
        done = 0
        while done < striped * k_tiles:
            tile, at = divmod(done, k_tiles)
            starts[tiles - striped + tile].add(at)
            done += share
        for part in parts:
            for row in range(part.rows[0], part.rows[1], block_rows):
                for start, stop in part.columns:
                    for column in range(start, stop, tile_n):
                        tile = row // block_rows * column_tiles + column // tile_n
                        assert {cut // tile_k for cut in part.cuts[:-1]} == starts[tile]
    assert covered == rows


def test_marlin_partition_of_known_shapes_changed() -> None:
    assert launches(323, 768) == [(0, 320), (320, 3)]
    assert launches(100, 768) == [(0, 64), (64, 36)]
    # one row, 12 tiles of 64 columns x 6 K tiles of 128: fewer than SMs, so every K tile is a slice
    ((_, _, tile_k, (part,)),) = stripes(1, 768, 768, 128, 132)
    assert (tile_k, part.cuts) == (128, (0, 128, 256, 384, 512, 640, 768))
    # 108 SMs (A100) cut the same product of 64 rows elsewhere than 132 do
    cuts = {sm: stripes(64, 4096, 1536, 128, sm)[0][3][0].cuts for sm in (108, 132)}
    assert cuts[108] != cuts[132]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 64), st.integers(1, 140), st.integers(1, 200))
def test_machete_leaves_a_tile_out_or_cuts_it_too_small(
    rows: int, in_blocks: int, out_blocks: int, sm_count: int
) -> None:
    in_features, out_features = 128 * in_blocks, 64 * out_blocks
    parts = stream_k(rows, in_features, out_features, sm_count)
    assert_covers(parts, rows, out_features, in_features, 64)
    for part in parts:
        for start, stop in pairwise(part.cuts):
            assert stop - start >= min(8 * 64, in_features)


@pytest.mark.parametrize(
    ("rows", "in_features", "out_features", "cuts"),
    [
        (1, 768, 768, (0, 768)),  # 9 units for 6 tiles: no share of 8 K tiles fits beside another in 12
        (1, 1536, 768, (0, 512, 1024, 1536)),  # 18 units for 6 tiles: plain split-K, three each
        (323, 768, 768, (0, 768)),
    ],
)
def test_machete_partition_of_known_shapes_changed(
    rows: int, in_features: int, out_features: int, cuts: tuple[int, ...]
) -> None:
    assert {part.cuts for part in stream_k(rows, in_features, out_features, 132)} == {cuts}


def test_machete_schedule_misses_a_row_of_the_heuristic() -> None:
    assert schedule(1, 768, 768).tile_m == 16
    assert schedule(33, 4096, 4096).cluster == 1
    assert schedule(65, 4069, 4069).tile_m == 32
    assert schedule(65, 4096, 4096).tile_m == 128
    assert schedule(257, 768, 4096).tile_m == 128
    assert schedule(257, 768, 8192).tile_m == 256
