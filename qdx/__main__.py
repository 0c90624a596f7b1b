"""The command line: ``python -m qdx`` and the script ``qdx``. Imports neither torch nor vllm."""

from __future__ import annotations

import os
import sys

from qdx.commands import NO_PLUGINS, flags_first
from qdx.errors import QdxError
from qdx.plugins import conf_dir, leave_out, load
from qdx.process import FULL_ERROR
from qdx.program import of_disk, run


def main() -> None:
    """Compose the config, run the sweep and end with its exit status, see `qdx.program`."""
    run(_sweep)


def _sweep() -> int:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.plugins.sweeper import Sweeper

    from qdx.sweep.callback import job, stopped

    # Hydra deep-copies its store, a singleton, for every group that --help lists: more than half of the time.
    # It only reads from the copies, and `ConfigStore.load` copies what it gives.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    # A sweeper composes every job to see whether that works, which `qdx.sweep.expand` has just done. What all
    # sweepers inherit it from is changed: their own classes Hydra makes anew when it looks for plug-ins.
    Sweeper.validate_batch_is_legal = lambda sweeper, batch: None  # type: ignore[assignment, method-assign]

    full = bool(os.environ.get("HYDRA_FULL_ERROR"))
    if full:
        os.environ[FULL_ERROR] = "1"
    # Hydra prints a traceback and exits by itself unless this is set; qdx makes one line with a remedy of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if NO_PLUGINS in sys.argv[1:]:  # Hydra knows no such flag
        sys.argv = [argument for argument in sys.argv if argument != NO_PLUGINS]
        leave_out()
    sys.argv[1:] = flags_first(sys.argv[1:])
    try:
        load()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except Exception as error:
        if stopped(error):
            return 1
        if full:
            raise
        from qdx.hydra_errors import explain

        message = str(error) if isinstance(error, QdxError) else explain(error, conf_dir())
        if message is None:
            raise
        print(f"qdx: error: {message}", file=sys.stderr)
        return 1 if of_disk(error) else 2
    return 0


if __name__ == "__main__":
    main()
