"""The verdict: is this the claimed config, and which of N made this transcript.

The statistics are functions of plain arrays (`p_values`, `profile`, `likelihood`, `roc`, `judge`, `exact`);
`replays` reads the arrays from a producers' and a verifier's sweep; `claims`, `attribution`, `crossing` and
`environment` make the sections of the report.
"""

from __future__ import annotations

from qdx.verification.attribution import attribution, attribution_by_distance
from qdx.verification.claims import verify
from qdx.verification.crossing import crossing
from qdx.verification.environment import environment_validation

__all__ = ["attribution", "attribution_by_distance", "crossing", "environment_validation", "verify"]
