"""The command line: ``python -m qdx`` and the script ``qdx``. Imports neither torch nor vllm."""

from __future__ import annotations

import os
import sys

from qdx.errors import QdxError
from qdx.plugins import conf_dir, load
from qdx.process import FULL_ERROR


def main() -> None:
    """Compose the config, run the sweep, exit 1 when a job failed and 2 when the command line is wrong."""
    import hydra

    from qdx.sweep import job, stopped

    full = bool(os.environ.get("HYDRA_FULL_ERROR"))
    if full:
        os.environ[FULL_ERROR] = "1"
    # Hydra prints a traceback and exits by itself unless this is set; qdx makes one line with a remedy of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        load()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if stopped(error):
            sys.exit(1)
        if full:
            raise
        from qdx.messages import explain

        message = str(error) if isinstance(error, QdxError) else explain(error, conf_dir())
        if message is None:
            raise
        print(f"qdx: error: {message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
