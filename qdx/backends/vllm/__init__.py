"""vLLM's offline engine as a backend.

``backend.py`` runs it, ``starting.py`` starts it, ``versions.py`` chooses between ``by_name.py``
(0.11.2 – 0.21) and ``by_backend.py`` (0.22 – 0.33), which say how a kernel is asked for; ``tap.py`` sees the
rows of logits and forces tokens, ``spill.py`` moves rows to host memory, ``handing.py`` gives them to the
recorder, ``kernels.py`` and ``facts.py`` read what was loaded, ``errors.py`` says what to change. Importing
this package imports neither torch nor vLLM.

Run: 0.20.2 and 0.25.1 on an H100, 0.20.2 on an H200 (docs/results), 0.32.0 on a CPU
(``scripts/vllm_cpu_venv.sh``; every run of CI), where ``simulated.py`` registers the numerical models of the
int4 kernels. The Python sources of 0.33.0 passed the tests over 0.32.0's compiled CPU kernels. Everything of
the other versions is written from source, not run.
"""

from __future__ import annotations

from qdx.backends.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
