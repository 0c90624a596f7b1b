"""Merkle trees: published roots, an independent implementation, and paths that must not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdx.errors import QdxError
from qdx.verification.merkle import Tree, fits, leaf_hash, node_hash, path_length

# Certificate Transparency's own test vectors (certificate-transparency-go, merkle tree tests).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(1, 9))
def test_roots_are_those_that_certificate_transparency_published(count: int) -> None:
    assert Tree([leaf_hash(data) for data in LEAVES[:count]]).root.hex() == ROOTS[count - 1]


def recursive(leaves: Sequence[bytes]) -> bytes:
    """The definition of RFC 9162 as it stands there."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + recursive(leaves[:k]) + recursive(leaves[k:])).digest()


@given(st.integers(1, 70), st.data())
def test_every_leaf_fits_at_its_place_and_nowhere_else(size: int, data: st.DataObject) -> None:
    plain = [i.to_bytes(2, "big") for i in range(size)]
    leaves = [leaf_hash(leaf) for leaf in plain]
    tree, index = Tree(leaves), data.draw(st.integers(0, size - 1))
    path = tree.path(index)
    assert tree.root == recursive(plain)
    assert len(path) == path_length(index, size)
    assert fits(leaves[index], index, size, path, tree.root)
    for other in set(range(size)) - {index}:
        assert not fits(leaves[index], other, size, path, tree.root)
        assert not fits(leaves[other], index, size, path, tree.root)
    assert not fits(leaves[index], index, size, [*path, leaves[0]], tree.root)
    if path:
        assert not fits(leaves[index], index, size, path[:-1], tree.root)
        bent = bytes([path[0][0] ^ 1]) + path[0][1:]
        assert not fits(leaves[index], index, size, [bent, *path[1:]], tree.root)


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    leaves = [leaf_hash(data) for data in LEAVES[:4]]
    tree = Tree(leaves)
    inner = node_hash(leaves[0], leaves[1])
    # A tree of two leaves whose first is the inner node has the same root: the size decides, and is bound.
    assert fits(inner, 0, 2, [node_hash(leaves[2], leaves[3])], tree.root)
    assert not fits(inner, 0, 4, [node_hash(leaves[2], leaves[3])], tree.root)
    assert leaf_hash(leaves[0] + leaves[1]) != inner


def test_a_tree_has_leaves_and_a_path_has_an_end() -> None:
    with pytest.raises(QdxError, match="at least one leaf"):
        Tree([])
    with pytest.raises(QdxError, match="leaf 1: the tree has 1 leaves"):
        Tree([leaf_hash(b"")]).path(1)
    assert not fits(leaf_hash(b""), -1, 1, [], leaf_hash(b""))
