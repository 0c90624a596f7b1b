"""Reads the files of the experiment that qdx grew out of: ``python -m qdx.legacy FILE.json OUT.nc``.

Nothing of such a file is executed, and what it does not hold stays absent: it has log-probabilities of five
or six ids at three positions of the prompt and of the output, no full rows, hashes or sketches.
"""

from __future__ import annotations

from qdx.legacy.convert import convert

__all__ = ["convert"]
