"""Build the extra report sections of a verifier's sweep, which judge the replayed transcripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx import new_file
from qdx.errors import QdxError
from qdx.prompts.challenge import read as read_challenge
from qdx.prompts.transcripts import COPY

if TYPE_CHECKING:
    import xarray as xr

    from qdx.analysis.section import Section
    from qdx.verification.exchange import Exchange

SECTIONS = ("environment_validation", "verify", "crossing", "attribution")  # in the order of the report
CALIBRATION = "calibration"  # folder below the sweep's, with the two files of an earlier verification
CHALLENGE = "verify_challenge.json"  # copy of what the transcripts answer; never the name of an original
LEFT_OUT = ("consistency",)  # analyses of free generations, of which a verifier makes none
TEXT_STATED = "text as stated by the producer, not decoded here"
STATED = "sources, pages, offsets and sha256 as stated by the producer, not checked here"
RULE = (
    "none: this sweep replayed transcripts. Its configs are compared with each other in prefill, where all "
    "see the same tokens; replays are judged transcript by transcript (Claims, Producer × verifier, "
    "Which of N)"
)


def is_verifier(tree: xr.DataTree) -> bool:
    """Return whether a sweep replayed the transcripts of producers."""
    return "replay" in tree.children and "producer" in tree["replay"].dims


def calibration_folder(directory: Path, number: int) -> Path:
    """The folder of a set of known transcripts in a verifier's sweep; sets are numbered from 1."""
    return directory / (CALIBRATION if number == 1 else f"{CALIBRATION}_{number}")


def adopt_calibration(directory: Path, folder: Path, number: int = 1) -> None:
    """Copy what an earlier verification measured into a sweep folder, where every later report finds it.

    Parameters
    ----------
    directory : Path
        The verifier's sweep folder.
    folder : Path
        An earlier verifier's, whose producers ran the configs that their labels say.
    number : int
        Of the set, from 1.

    Raises
    ------
    QdxError
        When `folder` is not a verifier's sweep, or a file of it is refused (`qdx.dataset.guarding`).
    """
    from qdx.dataset.folder import SWEEP
    from qdx.dataset.guarding import guard
    from qdx.dataset.opening import open_file
    from qdx.prompts._transcript_file import check_name, read

    missing = [name for name in (SWEEP, COPY) if not (folder / name).is_file()]
    if missing:
        raise QdxError(
            f"calibration {folder}: it holds no {missing[0]}: give the folder of a finished sweep "
            "that was run with prompts=transcripts"
        )
    guard(folder / SWEEP, folder / COPY)
    tree = open_file(folder / SWEEP)
    try:
        if not is_verifier(tree):
            raise QdxError(f"calibration {folder}: its {SWEEP} is not a verifier's: /replay has no producer")
        for dim in ("config", "producer"):
            for label in tree["replay"].to_dataset()[dim].values:
                check_name(str(label), f"calibration {folder / SWEEP}: /replay/{dim}")
    finally:
        tree.close()
    read(folder / COPY)  # its names are printed
    target = calibration_folder(directory, number)
    if folder.resolve() == target.resolve():
        return
    new_file.make_folder(target)
    for name in (SWEEP, COPY):
        new_file.copy(folder / name, target / name)


def adopt_challenge(directory: Path, challenge: Path) -> None:
    """Copy a challenge and the verifier's ledger of it into a sweep folder, for every later report.

    Parameters
    ----------
    directory : Path
        The verifier's sweep folder.
    challenge : Path

    Raises
    ------
    QdxError
        When either is missing, damaged, or of another challenge.
    """
    from qdx.verification import ledger

    asked, digest = read_challenge(challenge)
    own = ledger.read(ledger.path_of(challenge), asked, digest)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / CHALLENGE
    if target.exists() and target.samefile(challenge):
        return
    new_file.copy(challenge, target)
    ledger.write(ledger.path_of(target), own)


def exchange_of(directory: Path, tree: xr.DataTree) -> Exchange | None:
    """Hold a producers' file against the challenge in the verifier's folder; None where there is none.

    Raises
    ------
    QdxError
        When the file opens rows and there is no challenge, or its files are damaged.
    """
    from qdx.verification.exchange import KIND

    path = directory / CHALLENGE
    if not path.is_file():
        if str(tree.attrs.get("kind")) == KIND:
            raise QdxError(
                f"{directory} has no {CHALLENGE}: opened rows are judged with the challenge that they "
                "answer: verify.challenge=challenge.json"
            )
        return None
    return exchange_with(path, tree)


def exchange_with(challenge: Path, tree: xr.DataTree) -> Exchange:
    """Hold a producers' file against a challenge, whose ledger lies beside it.

    Raises
    ------
    QdxError
        When either file is missing or damaged, or they are not of one exchange.
    """
    from qdx.verification import exchange, ledger

    asked, digest = read_challenge(challenge)
    return exchange.examine(tree, asked, digest, ledger.read(ledger.path_of(challenge), asked, digest))


def judge(
    directory: Path, tree: xr.DataTree, settings: Mapping[str, Any], said: Callable[[Exception], str]
) -> tuple[list[Section], dict[str, str]]:
    """Judge the transcripts of a verifier's sweep.

    Parameters
    ----------
    directory : Path
        The sweep folder; `COPY` in it is the producers' file.
    tree : xarray.DataTree
        The merged sweep.
    settings : Mapping
        ``sweep.json``; its ``verify`` holds alpha and claims.
    said : callable
        Makes one line of an error.

    Returns
    -------
    sections : list of Section
        Of `SECTIONS`, those that could be made.
    broken : dict
        Name of a section to why it could not.
    """
    with ExitStack() as stack:
        try:
            producers, verifier, known, exchange = _trees(directory, tree, stack)
        except Exception as error:
            return [], {"verify": said(error)}
        options = settings.get("verify") or {}
        alpha, claims = float(options.get("alpha", 0.05)), dict(options.get("claims") or {})
        require = dict(options.get("require") or {})
        steps = _steps(producers, verifier, known, alpha, claims, require, exchange)
        sections, broken = [], {}
        for name, step in steps.items():
            try:
                sections.append(step())
            except Exception as error:  # one section must not take the others with it
                broken[name] = said(error)
        return sections, broken


def _steps(
    producers: xr.DataTree,
    verifier: xr.DataTree,
    known: list[tuple[xr.DataTree, xr.DataTree]],
    alpha: float,
    claims: dict[str, str],
    require: dict[str, Any],
    exchange: Exchange | None,
) -> dict[str, Callable[[], Section]]:
    from qdx.verification import attribution, crossing, environment_validation, verify

    own = {str(label): str(label) for label in verifier["replay"].to_dataset()["producer"].values}
    steps: dict[str, Callable[[], Section]] = {
        "environment_validation": lambda: environment_validation(producers, verifier, {**own, **claims}),
        "verify": lambda: verify(producers, verifier, alpha, claims, known or None, require, exchange),
        "crossing": lambda: crossing(producers, verifier),
    }
    if "sketch" in producers["decode"].to_dataset():  # commitments have no distances to attribute by
        steps["attribution"] = lambda: attribution(
            producers, verifier, alpha, calibration=known[0] if known else None
        )
    return steps


def _trees(
    directory: Path, tree: xr.DataTree, stack: ExitStack
) -> tuple[xr.DataTree, xr.DataTree, list[tuple[xr.DataTree, xr.DataTree]], Exchange | None]:
    """The producers' tree, the verifier's, those of the calibration, and the exchange of a challenge."""
    from qdx.dataset.folder import SWEEP
    from qdx.dataset.opening import open_file
    from qdx.prompts._transcript_file import read
    from qdx.verification.commitments import attach

    path = directory / COPY
    if not path.is_file():
        raise QdxError(f"{path} is missing: put the producers' file that was replayed there")
    stored = tree["provenance"].to_dataset()
    if {str(v) for v in stored["transcripts_sha256"].values} != {read(path).sha256}:
        raise QdxError(f"{path} holds other transcripts than those that were replayed: put that file there")

    def opened(file: Path) -> xr.DataTree:
        found = open_file(file)
        stack.callback(found.close)
        return found

    producers = opened(path)
    exchange = exchange_of(directory, producers)
    producers = producers if exchange is None else exchange.tree
    bound = producers.attrs.get("kind") in ("commitments", "opened")
    verifier = attach(tree, directory) if bound else tree
    known, number = [], 1
    while (folder := calibration_folder(directory, number)).is_dir():
        known.append((opened(folder / COPY), opened(folder / SWEEP)))
        number += 1
    return producers, verifier, known, exchange
