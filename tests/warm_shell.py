"""Lets ``python -m qdx …`` in a script of a shell be a fork of `tests.warm`, which a client asks for."""

from __future__ import annotations

import contextlib
import json
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests import warm

# Takes ``-m module`` and arguments as python does. Variables that bash sets for every command are left out:
# `tests.warm` has a process for each environment.
CLIENT = """#!{python} -IS
import json, os, socket, sys

connection = socket.socket(socket.AF_UNIX)
connection.connect({socket!r})
variables = {{k: v for k, v in os.environ.items() if k not in ("_", "SHLVL", "PWD", "OLDPWD")}}
request = {{"module": sys.argv[2], "arguments": sys.argv[3:], "cwd": os.getcwd(), "environment": variables}}
with connection.makefile("rw") as file:
    file.write(json.dumps(request) + "\\n")
    file.flush()
    done = json.loads(file.readline())
for stream, text in ((sys.stdout, done["stdout"]), (sys.stderr, done["stderr"])):
    stream.write(text)
    stream.flush()
sys.exit(done["status"] if done["status"] >= 0 else 128 - done["status"])
"""
LIMIT_S = 600


@contextlib.contextmanager
def serving() -> Iterator[Path]:
    """Answer a client's requests in a thread, one at a time.

    Yields
    ------
    Path
        The client, a program that stands for ``python`` before ``-m``.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            done = warm.run(
                asked["module"], asked["arguments"], Path(asked["cwd"]), asked["environment"], LIMIT_S
            )
            answer = {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    # A socket's path has at most 107 bytes, which a test's own folder may be longer than.
    with tempfile.TemporaryDirectory() as folder:
        path, client = Path(folder, "socket"), Path(folder, "client")
        client.write_text(CLIENT.format(python=sys.executable, socket=str(path)))
        client.chmod(0o755)
        with socketserver.UnixStreamServer(str(path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield client
            finally:
                server.shutdown()
                thread.join()
