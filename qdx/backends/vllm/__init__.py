"""vLLM's offline engine as a backend.

``backend.py`` runs it, ``start.py`` starts it, ``kernel_choice.py`` says how a version of vLLM is asked for
a kernel; ``tap.py`` sees the rows of logits, forces tokens and hands the rows to the recorder,
``kernels.py`` and ``observed.py`` read what was loaded, ``errors.py`` says what to change. Importing this
package imports neither torch nor vLLM.

Run: 0.20.2 and 0.25.1 on an H100, 0.20.2 on an H200 (docs/results), 0.32.0 on a CPU
(``scripts/vllm_cpu_venv.sh``; every run of CI), where ``simulated.py`` registers the numerical models of the
int4 kernels. The Python sources of 0.33.0 passed the tests over 0.32.0's compiled CPU kernels. Everything of
the other versions is written from source, not run.
"""

from __future__ import annotations

from qdx.backends.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
