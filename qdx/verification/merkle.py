"""Merkle trees as Certificate Transparency has them (RFC 9162, section 2.1), over SHA-256.

A leaf's hash begins with the byte 0 and an inner node's with the byte 1, so that no leaf can pass for a node.
The tree of n leaves has on its left the greatest power of two below n. A path says that a leaf stands at one
index of a tree of one size: another index or another size asks for other sides, and does not fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from qdx.errors import QdxError

BYTES = 32
LEAF, NODE = b"\x00", b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf.

    Examples
    --------
    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return hashlib.sha256(LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node from its children's hashes."""
    return hashlib.sha256(NODE + left + right).digest()


class Tree:
    """A tree over leaves' hashes.

    Parameters
    ----------
    leaves : sequence of bytes
        Hashes, see `leaf_hash`; at least one.

    Raises
    ------
    QdxError
        When there is none.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise QdxError("a Merkle tree needs at least one leaf")
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            above = [node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            # The last one of an odd number moves up as it is, and is not doubled.
            self._levels.append(above + below[len(above) * 2 :])

    @property
    def root(self) -> bytes:
        """The hash of the whole."""
        return self._levels[-1][0]

    def path(self, index: int) -> list[bytes]:
        """Return the hashes that lead from a leaf to the root, the lowest first.

        Raises
        ------
        QdxError
            For a leaf that the tree does not have.
        """
        if not 0 <= index < len(self._levels[0]):
            raise QdxError(f"leaf {index}: the tree has {len(self._levels[0])} leaves")
        found = []
        for level in self._levels[:-1]:
            if (beside := index ^ 1) < len(level):
                found.append(level[beside])
            index //= 2
        return found


def path_length(index: int, size: int) -> int:
    """Return how many hashes lead from a leaf to the root of a tree of `size` leaves.

    Examples
    --------
    >>> [path_length(i, 5) for i in range(5)]
    [3, 3, 3, 3, 1]
    """
    count = 0
    while size > 1:
        count += (index ^ 1) < size
        index, size = index // 2, (size + 1) // 2
    return count


def fits(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether a leaf stands at an index of the tree that has this size and root.

    Parameters
    ----------
    leaf : bytes
        Its hash.
    index, size : int
    path : sequence of bytes
        The lowest first; one too many or too few does not fit.
    root : bytes
    """
    if not 0 <= index < size or len(path) != path_length(index, size):
        return False
    steps = iter(path)
    while size > 1:
        if (index ^ 1) < size:
            beside = next(steps)
            leaf = node_hash(beside, leaf) if index % 2 else node_hash(leaf, beside)
        index, size = index // 2, (size + 1) // 2
    return leaf == root
