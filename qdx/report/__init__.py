"""The report of a sweep: what a person reads (``report.txt``) and what a program reads (``summary.json``)."""

from __future__ import annotations

from qdx.report.build import Report, build

__all__ = ["Report", "build"]
