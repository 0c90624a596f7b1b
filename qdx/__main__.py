"""The command line: ``python -m qdx`` and the script ``qdx``. Imports neither torch nor vllm."""

from __future__ import annotations

import os
import sys

from qdx.errors import QdxError
from qdx.plugins import conf_dir, leave_out, load
from qdx.process import FULL_ERROR

NO_PLUGINS = "--no-plugins"  # plug-in files of the working folder are not looked for


def main() -> None:
    """Compose the config, run the sweep; see Exit status.

    Notes
    -----
    Exit status: 0, all there; 1, a job failed or the disk did not take the results; 2, the command line is
    wrong, and nothing ran; 3 and 4, a verifier's sweep is all there, and a claim is refuted or another
    config's (3), or is undecided (4); 130, interrupted (Ctrl-C).
    """
    import hydra
    from hydra.core.config_store import ConfigStore

    from qdx.sweep.callback import job, stopped

    # Hydra deep-copies its store, a singleton, for every group that --help lists: more than half of the time.
    # It only reads from the copies, and `ConfigStore.load` copies what it gives.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]

    full = bool(os.environ.get("HYDRA_FULL_ERROR"))
    if full:
        os.environ[FULL_ERROR] = "1"
    # Hydra prints a traceback and exits by itself unless this is set; qdx makes one line with a remedy of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if NO_PLUGINS in sys.argv[1:]:  # Hydra knows no such flag
        sys.argv = [argument for argument in sys.argv if argument != NO_PLUGINS]
        leave_out()
    try:
        load()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except KeyboardInterrupt:
        print("qdx: interrupted: what is finished is kept, and the sweep can be resumed", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if stopped(error):
            sys.exit(1)
        if full:
            raise
        from qdx.hydra_errors import explain, of_disk

        message = str(error) if isinstance(error, QdxError) else explain(error, conf_dir())
        if message is None:
            raise
        print(f"qdx: error: {message}", file=sys.stderr)
        sys.exit(1 if of_disk(error) else 2)


if __name__ == "__main__":
    main()
