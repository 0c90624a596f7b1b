"""Ask a server of the OpenAI interface: ``backend=openai`` sends the prompts and keeps the answers.

Nothing of what a server runs can be observed. So a config that asks one writes no ``run.nc``: it leaves
`ANSWERS`, requests and responses as they were sent and received, a line each, which any reader of
`qdx.records` takes. `client` sends one request, `requests` says what is in it, `ask` runs one config and
`answers` counts what came back.
"""

from qdx.endpoints.answers import ANSWERS, FACTS, Asked, asked_of, is_asked
from qdx.endpoints.ask import Endpoint, Job, ask

__all__ = ["ANSWERS", "FACTS", "Asked", "Endpoint", "Job", "ask", "asked_of", "is_asked"]
