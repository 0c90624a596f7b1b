"""vLLM's offline engine as a backend.

``backend.py`` runs it, ``versions.py`` chooses between ``by_name.py`` (0.11.2 – 0.21) and ``by_backend.py``
(0.22 – 0.33), which
say how a kernel is asked for; ``tap.py`` sees the rows of logits, ``pinning.py`` forces tokens,
``kernels.py`` reads what was
loaded. Importing this package imports neither torch nor vLLM.
"""

from __future__ import annotations

from qdx.backends.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
