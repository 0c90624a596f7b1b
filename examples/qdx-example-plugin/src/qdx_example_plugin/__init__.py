"""What the entry point names: importing it registers the members."""

from qdx_example_plugin.metric import hellinger
from qdx_example_plugin.prompts import Capitals

__all__ = ["Capitals", "hellinger"]
