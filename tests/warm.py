"""Runs ``python -m …`` in forks of a process that has imported torch and the other packages already.

A sweep of tiny checkpoints computes for a second and starts four interpreters, each of which imports torch
and transformers for four seconds. A fork does what a new interpreter does from the import of qdx on: it has
its own folder, arguments, path, environment, standard streams and exit status, and leaves nothing behind. The
jobs of its sweep are such forks too, of a process that has not imported qdx.

What a fork cannot show is what an interpreter does while it starts. Tests of that (encodings, closed streams,
signals, launchers, modules in the working folder, pages of docs/) start their own.

One process waits for each environment (`serve`). For a command it forks a keeper, which forks the command and
then the command's jobs, and hands its exit status on.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

# What a job, a sweep's preparation and a report import, and qdx not at all.
PRELOADED = (
    *(
        "numpy",
        "scipy.stats",
        "xarray",
        "netCDF4",
        "h5py",
        "dask.array",
        "hydra",
        "omegaconf",
        "rich.console",
        "rich.progress",
        "pypdf",
        "fontTools.agl",
        "cryptography.hazmat.primitives.ciphers",
        "jinja2",
    ),
    *("torch", "safetensors.torch", "transformers", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
)
IDLE = 2  # processes that wait at most
JOB = "from qdx.sweep.job import main; main()"  # how `qdx.process.command` ends for a job
LIMIT = 1 << 20  # bytes of a message

_servers: dict[str, subprocess.Popen[str]] = {}


def run(
    module: str, arguments: Sequence[str], cwd: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` with these arguments in a fork and return how it ended.

    Parameters
    ----------
    module : str
    arguments : sequence of str
    cwd : Path
    environment : dict
        The whole of it.
    timeout : float
        Seconds after which the command is killed and `subprocess.TimeoutExpired` raised.
    """
    server = _server(environment)
    assert server.stdin is not None and server.stdout is not None
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        request = {
            "module": module,
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": environment,
            "streams": [str(path) for path in streams],
            "timeout": timeout,
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the process that forks ended"
        stdout, stderr = (path.read_text(encoding="utf-8") for path in streams)
    status = json.loads(answer)
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(command, status, stdout, stderr)


def _server(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Return the process for an environment, which packages read while they are imported."""
    key = json.dumps({k: v for k, v in environment.items() if k != "PYTEST_CURRENT_TEST"}, sort_keys=True)
    if key not in _servers:
        while len(_servers) >= IDLE:
            _end(_servers.pop(next(iter(_servers))))
        _servers[key] = subprocess.Popen(
            [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['serve']()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment,
        )
    _servers[key] = _servers.pop(key)  # the one used last is ended last
    return _servers[key]


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


@atexit.register
def _end_all() -> None:
    while _servers:
        _end(_servers.popitem()[1])


def serve() -> None:
    """Import packages, then run a command for every line of standard input until that ends."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # makes a table of all architectures, which is kept
    # A fork that collects garbage, and each does when it ends, would look through a million objects of these
    # modules and so copy their pages: a second of a job that computes for one.
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        answer, answering = os.pipe()
        keeper = os.fork()
        if keeper == 0:
            os.close(answer)
            status = _keep(request)
            if status is _FORK:
                return  # the command or a job, which goes on as its interpreter
            os.write(answering, json.dumps(status).encode())
            os._exit(0)
        os.close(answering)
        with open(answer) as reader:  # noqa: PTH123 - a file descriptor
            said = reader.read()
        os.waitpid(keeper, 0)
        print(said, flush=True)


_FORK = object()  # what `_keep` returns in its forks


def _keep(request: dict[str, Any]) -> object:
    """Fork the command, and then its jobs as it asks for them; return its exit status, None for too late."""
    asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = os.fork()
    if command == 0:
        asked.close()
        _become_command(request, asking)
        return _FORK
    asking.close()
    late = []

    def end(*_: object) -> None:
        late.append(True)
        os.kill(command, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    while True:
        message, numbers = _received(asked)
        if not message:  # the command ended
            break
        # One process between, which waits for the job and says how it ended.
        if os.fork() == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            ended, *streams = numbers
            job = os.fork()
            if job == 0:
                os.close(ended)
                _become_job(json.loads(message), streams)
                return _FORK
            for number in streams:
                os.close(number)
            asked.close()
            os.write(ended, json.dumps(job).encode() + b"\n")
            status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
            os.write(ended, json.dumps(status).encode() + b"\n")
            os._exit(0)
        for number in numbers:
            os.close(number)
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(ChildProcessError):  # jobs die with their command
        while os.wait():
            pass
    return None if late else status


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    size = socket.CMSG_LEN(16 * numbers.itemsize)
    message, ancillary, _, _ = channel.recvmsg(LIMIT, size)
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)


def _become_command(request: dict[str, Any], asking: socket.socket) -> None:
    """Become ``python -m module``: an exception or an exit goes to the interpreter, as it does there."""
    import runpy
    import types

    streams = [os.open(os.devnull, os.O_RDONLY)]
    streams += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for path in request["streams"]]
    _start(request, streams)
    sys.path[0] = request["cwd"]
    sys.argv = ["-m", *request["arguments"]]
    import qdx.process

    def popen(command: list[str], **options: Any) -> Any:
        forked = command[1:3] == ["-P", "-c"] and command[-1].endswith(JOB)
        return (Job if forked else subprocess.Popen)(
            command, **{**options, **({"asking": asking} if forked else {})}
        )

    qdx.process.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})  # type: ignore[assignment]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _become_job(request: dict[str, Any], streams: list[int]) -> None:
    """Become ``python -P -c code``."""
    extra = dict(zip(request["numbers"], streams[3:], strict=True))
    _start(request, streams[:3])
    for number, opened in extra.items():
        os.dup2(opened, number, inheritable=True)
        if opened not in extra:
            os.close(opened)
    sys.path.pop(0)
    sys.argv = ["-c"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr] # PYTHONUNBUFFERED
    exec(request["code"], {"__name__": "__main__"})


def _start(request: dict[str, Any], streams: list[int]) -> None:
    """Take the folder, the environment and the standard streams of a request."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, opened in enumerate(streams):
        os.dup2(opened, number)
        os.close(opened)


class Job:
    """What `qdx.process` uses of `subprocess.Popen`, for a job that is a fork."""

    def __init__(
        self,
        command: list[str],
        *,
        asking: socket.socket,
        stdin: int,
        cwd: str | None,
        env: dict[str, str],
        pass_fds: Sequence[int],
    ) -> None:
        assert stdin == subprocess.PIPE
        read, write = os.pipe()
        ended, ending = os.pipe()
        request = {
            "code": command[-1],
            "cwd": cwd or str(Path.cwd()),
            "environment": env,
            "numbers": list(pass_fds),
        }
        socket.send_fds(asking, [json.dumps(request).encode()], [ending, read, 1, 2, *pass_fds])
        os.close(read)
        os.close(ending)
        self.stdin: IO[bytes] = os.fdopen(write, "wb")
        self._ended = os.fdopen(ended, "rb")
        self.pid = int(json.loads(self._ended.readline()))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raise `subprocess.TimeoutExpired` when it takes longer."""
        import select

        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("job", timeout or 0)
            self.returncode = int(json.loads(self._ended.readline()))
        return self.returncode

    def terminate(self) -> None:
        """Ask the job to end."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the job."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
