"""Expand a command line into the jobs of a sweep, and check every one of them before the first one starts.

**Why the jobs are known before Hydra makes them.** Hydra composes a job's config when that job's turn comes,
and knows nothing of its types and limits (`qdx.schema`). A wrong value in the third job would be found when
the first two have run for hours. `expand` therefore composes every job at the start, by Hydra's own parser
and splitter, and validates each.

**Why only the basic sweeper.** An optimizing sweeper chooses the next job from the results of the last one.
Then there is no list of labels, and neither the manifest (``sweep.json``) nor a resumed sweep can say which
configs are missing. `_split` refuses it by name.

**Why the job knows what is swept.** A job's label, which is also its folder, names its quant and every other
key that varies (``awq,batch_size=4``). A job alone cannot know which keys those are. So they are added to the
overrides as ``swept=[…]``, here for the composed copies and in `qdx.sweep.callback` for the jobs that Hydra
makes, and the resolver ``qdx.label`` (`qdx.schema`) reads them.

**Why labels are frozen.** ``label`` is an interpolation, and some of what it names lives in the node
``hydra`` only. That node is not part of a job's config, so the label is resolved and stored before the node
is taken away.

**Why files settle what is left open.** With ``prompts=transcripts`` the batch size, the tokens and the like
are facts of the file, which the verifier has to repeat. What the user sets himself always wins (`settle`).

**What is checked here** needs no checkpoint and no tokenizer, so it costs a second: keys, types, limits,
options of plug-ins, labels that collide, metrics and configs that an analysis names. What needs them is in
`qdx.sweep.prepare`, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

import qdx.backends.auto  # noqa: F401 - registers the resolver that backend=auto is composed with
from qdx import plugins
from qdx.errors import QdxError, nearest
from qdx.schema import validate
from qdx.schema_endpoint import ENDPOINT

DEFAULTS = {"metric": "l2", "analysis": "effects"}  # named in the message about an empty list


def expand(config: DictConfig) -> tuple[list[str], list[DictConfig]]:
    """Compose and check every job of a sweep.

    Parameters
    ----------
    config : DictConfig
        What Hydra composed for a multirun, with its ``hydra`` node.

    Returns
    -------
    swept : list of str
        The keys that vary.
    jobs : list of DictConfig
        One config a job, without its ``hydra`` node.

    Raises
    ------
    QdxError
        For the first job whose config is not valid, or for two jobs of one label.
    """
    loader = GlobalHydra.instance().config_loader()
    swept, batch = _split(config, loader)
    for group in ("metric", "analysis"):
        if group in swept:
            raise QdxError(
                f"{group} takes a list and is not an axis of a sweep: write '{group}=[a,b]' in brackets"
            )
    jobs: dict[str, DictConfig] = {}
    for overrides in batch:
        cfg = loader.load_sweep_config(config, [*overrides, f"swept=[{','.join(swept)}]"])
        with flag_override(cfg, ["readonly", "struct"], False):
            # The label is an interpolation. It is resolved before the node `hydra` goes, which alone knows
            # what was chosen in a group that leaves no node of its own, such as experiment.
            cfg.label = None if cfg.label is None else str(cfg.label)
            del cfg["hydra"]
        settle(cfg, overrides)
        label = validate(cfg).label
        _check_plugins(cfg)
        if label in jobs:
            raise QdxError(f"two jobs of this sweep have the label {label!r}: drop one of them")
        jobs[label] = cfg
    return swept, list(jobs.values())


def _split(config: DictConfig, loader: Any) -> tuple[list[str], list[list[str]]]:
    """Return the keys that vary, and the overrides of every job, as Hydra's basic sweeper makes them."""
    # Private to Hydra, and the one place that knows how a command line becomes jobs. Its own `sweep` parses
    # and splits by the same two functions afterwards, so both lists of jobs are one.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        raise QdxError(
            f"hydra/sweeper={config.hydra.sweeper._target_}: qdx knows the labels of a sweep before "
            f"it starts, which only the basic sweeper allows: remove hydra/sweeper"
        )
    arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    # Unresolved: an interpolation such as label='${quant.name}-b' is each job's own.
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    arguments += [str(override) for override in task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    # A later override of a key replaces an earlier one, so the last one says whether it is swept.
    last = {override.get_key_element(): override for override in parsed}
    swept = [key.lstrip("+") for key, override in last.items() if override.is_sweep_override()]
    return swept, BasicSweeper.split_arguments(parsed, None)[0]


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take from a file of transcripts, or of a challenge, what the command line leaves open.

    A verifier replays what a producer did, so the file decides the batch size, the number of tokens and the
    like; see `qdx.prompts.transcripts.settle` and `qdx.prompts.challenge.settle`. It happens when the sweep
    is expanded and once more in the job, whose config Hydra composes anew.

    Parameters
    ----------
    cfg : DictConfig
        A job's config; changed in place.
    overrides : sequence of str
        What the user set, which is never changed.
    """
    if OmegaConf.select(cfg, "prompts.name") == "transcripts":
        from qdx.dataset.guarding import allow
        from qdx.prompts.transcripts import LIMITS
        from qdx.prompts.transcripts import settle as settle_transcripts

        allow(**{name: OmegaConf.select(cfg, f"prompts.{name}") for name in LIMITS})
        settle_transcripts(cfg, overrides)
    if OmegaConf.select(cfg, "prompts.name") == "challenge":
        from qdx.prompts.challenge import settle as settle_challenge

        settle_challenge(cfg, overrides)


def check_names(chosen: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Refuse analyses that name a metric or a config which the sweep will not have when they run.

    Parameters
    ----------
    chosen : Mapping
        A job's resolved config; metrics and analyses are the same in all of them.
    labels : sequence of str
        Of all configs that the folder will have.

    Raises
    ------
    QdxError
    """
    metrics = list(chosen["metric"])
    for name, options in chosen["analysis"].items():
        if not str(options["_target_"]).startswith("qdx.analysis."):
            continue  # a plug-in's options may mean something else
        for metric in options.get("metrics") or []:
            if metric not in metrics:
                known = metric in plugins.shipped("metric")  # kl is not a misspelt l2
                like = "" if known else nearest(str(metric), metrics)
                raise QdxError(
                    f"analysis.{name}.metrics={metric}: not measured in this sweep, only "
                    f"{', '.join(metrics)}{like}: add it to metric"
                )
        baseline = options.get("baseline")
        if baseline is not None and baseline not in labels:
            raise QdxError(
                f"analysis.{name}.baseline={baseline}: no config of this sweep, one of "
                f"{', '.join(labels)}{nearest(str(baseline), labels)}: add it to the sweep"
            )


def _check_plugins(cfg: DictConfig) -> None:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for kind in ("metric", "analysis"):
        if not isinstance(plain.get(kind), dict) or not plain[kind]:
            raise QdxError(f"{kind}=[]: choose at least one, such as {kind}=[{DEFAULTS[kind]}]")
        for name, node in plain[kind].items():
            plugins.check(kind, str(name), node)
    for kind in ("backend", "prompts"):
        if plain[kind]["_target_"] == ENDPOINT:
            continue  # it asks and runs no model, so it has no backend's methods; `validate` checks it
        plugins.check(kind, str(plain[kind]["name"]), plain[kind])
