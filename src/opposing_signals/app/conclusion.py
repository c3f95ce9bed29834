"""The conclusion of an experiment from its runs: its figure and the verdicts on its claims."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from opposing_signals.configuration import experiment_folder, job_folder
from opposing_signals.errors import InputError
from opposing_signals.files import replacing, write_json
from opposing_signals.record import Record
from opposing_signals.terminal import console
from opposing_signals.values import written

if TYPE_CHECKING:
    from opposing_signals.app.dashboard import Dashboard
    from opposing_signals.signals import Runs
    from opposing_signals.studies.claim import Claim, Verdict

CLAIM = ("statement", "source", "statistic", "threshold")
"""The fields of a claim."""


def conclude(
    config: DictConfig,
    records: dict[str, Record],
    mirror: Dashboard | None,
    failures: Mapping[str, str] = MappingProxyType({}),
    subfolder: str = "",
) -> None:
    """Draw the figure, check the claims, write both to disk and show them.

    Args:
        config: Of the experiment.
        records: Of its runs by name, including stopped ones.
        mirror: A dashboard that also shows figure and verdicts.
        failures: Name ↦ why that run is not complete.
        subfolder: Of the experiment's folder, to which they are written.
    """
    from opposing_signals.signals import Runs, Trajectory
    from opposing_signals.studies import style
    from opposing_signals.studies.claim import verdict_table

    folder = experiment_folder(config) / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    own_data: Any = OmegaConf.to_container(config.data, resolve=True) if "data" in config else {}
    read = {name: Trajectory(record, config.signals, own_data) for name, record in records.items()}
    stopped = {name: trajectory for name, trajectory in read.items() if name in failures}
    trajectories = Runs({name: read[name] for name in read if name not in stopped}, stopped, failures)
    verdicts = [claim.check(trajectories, config.scale.name, config.seed) for claim in _claims(config)]
    write_json(folder / "claims.json", [verdict.as_json() for verdict in verdicts])
    write_json(folder / "experiment.json", _description(config, records))
    with style.look():
        for place, runs, told, notes in _drawings(config, folder, trajectories, verdicts):
            place.mkdir(exist_ok=True)
            drawn = _draw(config, place, runs, told, notes)
            for stale in {"figure.png", "figure.pdf", "animation.gif", "tables.txt", "tables.html"} - drawn:
                (place / stale).unlink(missing_ok=True)
    if mirror is not None:
        mirror.show(folder, verdicts, read)
    terminal = console()
    title = f"{config.experiment.name} at scale={config.scale.name}, seed={config.seed}"
    terminal.print(verdict_table(verdicts, title, terminal))
    terminal.print(f"figure: {folder / 'figure.png'}\nclaims: {folder / 'claims.json'}", soft_wrap=True)


def _drawings(
    config: DictConfig, folder: Path, runs: Runs, verdicts: list[Verdict]
) -> list[tuple[Path, Runs, list[Verdict], list[str]]]:
    """The figures to draw: folder, runs, verdicts and notes to write below the panels.

    A figure shows one seed, unless ``experiment.figure_seeds`` is together: the first seed's is the experiment's, the
    others' are in folders beside it.
    """
    seeds = runs.by_seed()
    if len(seeds) < 2 or config.experiment.get("figure_seeds") == "together":
        return [(folder, runs, verdicts, [])]
    first, *others = seeds
    places = {seed: job_folder(f"seed={seed}") for seed in others}
    beside = ", ".join(f"{place}/figure.png" for place in places.values())
    return [
        (folder, seeds[first], verdicts, [f"Shown is seed {first}. The other seeds: {beside}"]),
        *(
            (folder / place, seeds[seed], [verdict.of_seed(seed) for verdict in verdicts], [f"Shown is seed {seed}."])
            for seed, place in places.items()
        ),
    ]


def _draw(config: DictConfig, folder: Path, runs: Runs, verdicts: list[Verdict], notes: Sequence[str]) -> set[str]:
    """Draw the complete ``runs``, or why there are none; returns the names of the files."""
    from matplotlib.figure import Figure

    from opposing_signals.studies import style

    drawn = set()
    if runs or runs.failures:
        figure = instantiate(config.figure)(runs) if runs else style.figure(8, 2, "No run is complete")
        if not isinstance(figure, Figure):
            raise InputError(
                f"figure._target_={config.figure._target_} gave {figure!r}: expected a figure of Matplotlib"
            )
        style.name_verdicts(figure, verdicts, runs.failures, notes)
        for name in ("figure.png", "figure.pdf"):
            with replacing(folder / name) as unfinished:
                style.save(figure, unfinished)
            figure.set_layout_engine("none")  # the layout is final: no second search
            drawn.add(name)
    if runs and OmegaConf.select(config, "animation") is not None:
        with replacing(folder / "animation.gif") as unfinished:
            instantiate(config.animation)(runs, unfinished)
        drawn.add("animation.gif")
    if runs and OmegaConf.select(config, "tables") is not None:
        instantiate(config.tables)(runs, folder)
        drawn |= {"tables.txt", "tables.html"}
    return drawn


def _claims(config: DictConfig) -> list[Claim]:
    from opposing_signals.studies.claim import Claim

    found = []
    for identifier, claim in config.claims.items():
        if missing := [field for field in CLAIM if field not in claim]:
            raise InputError(f"claims.{identifier}: no {missing[0]}; expected {', '.join(CLAIM)}")
        threshold = claim.threshold if isinstance(claim.threshold, str) else dict(claim.threshold)
        statistic = instantiate(claim.statistic, _partial_=True)
        try:
            signature(statistic).bind({})
        except TypeError as error:
            raise InputError(f"claims.{identifier}.statistic: {error}; expected it beside _target_") from None
        seeds = claim.get("seeds", "each")
        found.append(Claim(str(identifier), claim.statement, claim.source, statistic, threshold, seeds))
    return found


def _description(config: DictConfig, records: dict[str, Record]) -> dict[str, Any]:
    """The description of the experiment for the report."""
    return {
        "name": config.experiment.name,
        "title": config.experiment.title,
        "command": shlex.join(["opposing-signals", *sys.argv[1:]]),
        "scale": config.scale.name,
        "seed": config.seed,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {
            name: {"folder": record.folder.name, "configuration": record.configuration, "provenance": record.provenance}
            for name, record in records.items()
        },
    }


def check_conclusion(config: DictConfig) -> None:
    """Refuse, before training, a figure that cannot be drawn or claims that cannot be checked."""
    from opposing_signals.studies.probes.paths import check_probe

    if not OmegaConf.is_dict(config.get("figure")) or "_target_" not in config.figure:
        raise InputError(f"figure={written(config.get('figure'))}: expected a function, as its _target_")
    if not config.figure.get("_partial_"):
        raise InputError("figure: expected _partial_: true beside its _target_, which is called with the runs")
    for claim in _claims(config):
        claim.bound(config.scale.name)
    probes = OmegaConf.select(config, "instruments.block_probe.probes")
    if OmegaConf.is_list(probes) and "probe" in config.experiment:  # the instrument refuses anything else
        check_probe(config.experiment.probe, probes, config.run.name)
