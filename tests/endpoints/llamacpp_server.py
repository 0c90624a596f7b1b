"""llama.cpp's own server, as the wheel xllamacpp brings it; run as a program: FILE.gguf PORT [PARALLEL]."""

from __future__ import annotations

import sys
import time


def main() -> None:
    """Serve a GGUF file on loopback until somebody ends this process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"demo"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[2])
    params.n_parallel = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    params.n_ctx = 1024 * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
