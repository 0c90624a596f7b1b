"""The verdict: is this the claimed config, and which of N made this transcript.

The statistics are functions of plain arrays (`conformal`, `profile`, `likelihood`, `roc`, `attribution`,
`exact`); `gather` reads the arrays from a producers' and a verifier's sweep, `claims`, `which`, `crossing`
and `environment` make the sections of the report.
"""

from __future__ import annotations

from qdx.analysis.verification.claims import verify
from qdx.analysis.verification.crossing import crossing
from qdx.analysis.verification.environment import environment_validation
from qdx.analysis.verification.which import attribution, attribution_by_distance

__all__ = ["attribution", "attribution_by_distance", "crossing", "environment_validation", "verify"]
