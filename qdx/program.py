"""Begin and end every command of qdx: its streams, its signals, its last line and its exit status.

What a command prints is a view of the files that it writes. So nothing that happens to the view ends the
work: not a terminal that lacks a character, nor a closed stream, nor a reader who has seen enough
(``| head -1``).

=====  ==========================================================================================
0      everything is there; also when nobody read what was printed
1      a job failed, the disk did not take a result or what was printed, or something else broke
2      the command line or a file is wrong, and nothing was written
3, 4   of a verifier's sweep: a claim is refuted, or undecided
129    ended by SIGHUP: the terminal was closed
130    interrupted by Ctrl-C
143    ended by SIGTERM, such as by ``timeout``, a queue or a machine that shuts down
=====  ==========================================================================================
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import gc
import logging
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from qdx.errors import QdxError, UnwritableError, lacking, printable

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
PLAIN = "qdx.plain"  # name of the handler of characters that an encoding lacks
# What qdx's own texts use beyond ASCII, as a typewriter has it. One character for one where a table needs it.
_TYPEWRITER = {
    "–": "-", "—": "-", "−": "-", "‑": "-", "×": "x", "·": ".", "•": "*", "±": "+-", "≤": "<=", "≥": ">=",
    "≠": "!=", "≈": "~", "→": "->", "←": "<-", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "′": "'",
    "√": "sqrt", "∞": "inf", "α": "a", "ε": "e", "σ": "s", "Σ": "S", "Δ": "D", "‖": "|", "│": "|", "─": "-",
    "═": "=", "█": "#", "▁": "_", "⌊": "[", "⌋": "]", "⌈": "[", "⌉": "]", "✓": "+", "✗": "x", "½": "1/2",
}  # fmt: skip
_USUAL = gc.get_threshold()
_LINE_ENDS = re.compile(r"(\r?\n|\t)")  # what stays of control characters


class Ended(KeyboardInterrupt):
    """A signal asked this process to end. Whatever handles Ctrl-C closes its files for this as well."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.name = signal.Signals(number).name
        self.status = 128 + number


class Stream:
    """Standard output or error that never raises, and on which nothing that is printed acts.

    All that a process prints passes here: qdx's lines, logs and warnings of libraries, tracebacks. Any of it
    may quote a file, so not one character of it moves the cursor, sets a colour or turns the direction of
    writing (`qdx.errors.printable`). That a library meant to colour its log cannot be told from a file that
    does, so to whoever asks this is not a terminal.

    Parameters
    ----------
    stream : TextIO
        Of a file descriptor.
    filtered : bool
        Replace what acts; False is for qdx's own progress bar, which cleans what it quotes.
    bars : bool
        A carriage return at the start or end of a write stays: bars of libraries draw themselves with it.
    """

    def __init__(self, stream: TextIO, filtered: bool = True, bars: bool = False) -> None:
        self._stream, self._filtered, self._bars = stream, filtered, bars
        self.lost: OSError | None = None  # the first write that failed, a reader's leaving aside

    def __getattr__(self, name: str) -> Any:
        if name in ("_stream", "buffer"):  # of one that is being copied; bytes would pass unseen
            raise AttributeError(name)
        return getattr(self._stream, name)

    @property
    def unfiltered(self) -> TextIO:
        """The same for what moves the cursor on purpose."""
        return cast(TextIO, Stream(self._stream, filtered=False))

    def isatty(self) -> bool:
        """Return whether somebody may move the cursor here."""
        return not self._filtered and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write a text as far as somebody reads it, and return its length."""
        shown = harmless(text, self._bars) if self._filtered else text
        self._try(lambda: self._stream.write(shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what was written."""
        self._try(self._stream.flush)

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.lost = self.lost or error
            # From now on it goes nowhere, for child processes too; what is still in the buffer follows it.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            with contextlib.suppress(OSError):
                self._stream.flush()
        except ValueError:  # closed
            pass


def harmless(text: str, bars: bool = False) -> str:
    """Return a text for a terminal: � for what acts on one, but for tabs and the ends of lines.

    Parameters
    ----------
    text : str
    bars : bool
        Keep a carriage return that begins or ends the text. Another one would write over what stands before
        it in the line.
    """
    if text.isascii() and text.isprintable():
        return text
    begins = "\r" if bars and text.startswith("\r") else ""
    ends = "\r" if bars and len(text) > 1 and text.endswith("\r") else ""
    parts = _LINE_ENDS.split(text[len(begins) : len(text) - len(ends)])
    return begins + "".join(part if i % 2 else printable(part) for i, part in enumerate(parts)) + ends


def _typewritten(error: UnicodeError) -> tuple[str, int]:
    """Stand in for characters that an encoding lacks, and for bytes of a file's name that are not text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = "\ufffd" if error.encoding.lower().replace("-", "") == "utf8" else "?"
    lacking = error.object[error.start : error.end]
    return "".join(_TYPEWRITER.get(c) or _decomposed(c) or unknown for c in lacking), error.end


def _decomposed(character: str) -> str:
    """The ASCII letters and digits that a character is made of: é → e, ² → 2, ﬁ → fi."""
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()


codecs.register_error(PLAIN, _typewritten)


def guard() -> None:
    """Make the standard streams of this process safe to print to; twice does no harm."""
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        if (
            getattr(sys, name) is None
        ):  # closed: the next file that is opened would take its number, and be printed into
            setattr(sys, name, _nowhere(number, flags))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Stream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)
        guarded = Stream(stream, bars=name == "stderr")
        setattr(sys, name, guarded)
        if getattr(sys, f"__{name}__") is stream:
            setattr(sys, f"__{name}__", guarded)
        _log_through(guarded, stream)
    os.environ["PYTHON_COLORS"] = "0"  # Python asks the descriptor, not the stream, whether it is a terminal


def prepare() -> None:
    """Make the standard streams safe to print to, and SIGTERM an orderly end; twice does no harm."""
    guard()
    global _owner
    _owner = os.getpid()
    for name in ENDING:
        asked = getattr(signal, name, None)
        if asked is not None and signal.getsignal(asked) is signal.SIG_DFL:  # nohup ignores SIGHUP
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(asked, _end)


def _log_through(guarded: Stream, stream: TextIO) -> None:
    """Point the handlers that log to a stream to the guarded one; those of a launcher's worker are older."""
    named = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    for handler in (handler for log in (logging.root, *named) for handler in log.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.setStream(cast(TextIO, guarded))


def _nowhere(number: int, flags: int) -> TextIO:
    """Open the null device, in the place of a standard stream that is closed."""
    opened = os.open(os.devnull, flags)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(opened, number)
    if opened == number:  # it was the first number that was free
        os.set_inheritable(number, True)
    elif opened > 2:
        os.close(opened)
        opened = number
    return open(opened, "r" if flags == os.O_RDONLY else "w", encoding="utf-8", closefd=False)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    global _ended
    if os.getpid() != _owner:  # a library forked it, and ends it so: without a word
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for name in ENDING:  # `timeout` sends it to the whole group, and the parent passes it on
        if (other := getattr(signal, name, None)) is not None:
            signal.signal(other, signal.SIG_IGN)
    _ended = Ended(number)
    raise _ended


def ended() -> Ended | None:
    """Return what asked this process to end; compiled code that a signal hits may raise something else."""
    return _ended


_ended: Ended | None = None
_owner = 0  # the process whose signals are handled here


def run(
    main: Callable[[], int | None], name: str = "qdx", *, full: bool | None = None, child: bool = False
) -> NoReturn:
    """Run a command and end this process with its exit status, and one line where it did not succeed.

    Parameters
    ----------
    main : callable
        Returns the exit status, or raises.
    name : str
        Begins the line.
    full : bool, optional
        Show the traceback of an error that is one line otherwise. Default: whether ``HYDRA_FULL_ERROR`` is
        set.
    child : bool
        It works for another process, which says itself what became of the output that they share.
    """
    full = bool(os.environ.get("HYDRA_FULL_ERROR")) if full is None else full
    prepare()
    # While torch and transformers are imported, Python would go through all their objects again and again, a
    # tenth of the time, and find no garbage. What dies young is found as usual.
    gc.set_threshold(*_USUAL[:2], 1000)
    try:
        status = main() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt as error:
        status = _interrupted(error, name)
    except Exception as error:
        if _ended is not None:
            status = _interrupted(_ended, name)
        elif not full and (lack := lacking(error)):
            print(f"{name}: error: {lack}", file=sys.stderr)
            status = 2
        elif full or not isinstance(error, QdxError | OSError | MemoryError):
            raise
        else:
            print(f"{name}: error: {in_one_line(error)}", file=sys.stderr)
            status = 1 if of_disk(error) or not isinstance(error, QdxError) else 2
    # The interpreter's last search for garbage would go through all objects of torch and transformers, for a
    # second and for nothing: the files are closed, and the memory goes with the process.
    gc.freeze()
    sys.exit(status if child else finish(status, name))


def collect_as_usual() -> None:
    """Let Python search all objects for garbage as often as it does by default: everything is imported."""
    gc.set_threshold(*_USUAL)


def _interrupted(error: KeyboardInterrupt, name: str) -> int:
    how = f"ended by {error.name}" if isinstance(error, Ended) else "interrupted"
    print(
        f"{name}: {how}: what is finished is kept, and the same command goes on from there", file=sys.stderr
    )
    return error.status if isinstance(error, Ended) else 130


def finish(status: int, name: str = "qdx") -> int:
    """Send what is still to be printed; return the exit status, 1 where what was printed was lost."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    error = getattr(sys.stdout, "lost", None)
    if error is None:
        return status
    what = f"what it prints was lost ({error.strerror}), what it writes was not"
    print(f"{name}: error: standard output: {what}: free some space there", file=sys.stderr)
    sys.stderr.flush()
    return status or 1


def in_one_line(error: BaseException) -> str:
    """Return what went wrong with a file, the disk or the memory, with a remedy."""
    if isinstance(error, MemoryError):
        return "out of memory: lower report.memory or prompts.references, or run it where there is more"
    if isinstance(error, QdxError) or not isinstance(error, OSError) or not error.strerror:
        return str(QdxError(f"{error}" or type(error).__name__))
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    remedy = (
        "free some space, or choose another hydra.sweep.dir"
        if of_disk(error)
        else "look at it and run the command again"
    )
    return str(QdxError(f"{where}{error.strerror}: {remedy}"))


def of_disk(error: BaseException | None) -> bool:
    """Return whether the disk did not take something (Hydra's own errors of a config are OSErrors too)."""
    if isinstance(error, UnwritableError):
        return True
    if isinstance(error, QdxError):
        return of_disk(error.__cause__)
    return isinstance(error, OSError) and error.errno in UNWRITABLE
