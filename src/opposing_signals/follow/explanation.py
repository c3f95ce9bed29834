"""What a record says: opposing groups, loss spikes, divergence, in words and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opposing_signals.data.tokenizers import decode
from opposing_signals.data.tracked import positions, user_groups
from opposing_signals.errors import InputError
from opposing_signals.files import replacing, write_json
from opposing_signals.follow import quantities
from opposing_signals.follow.evidence import Batches, BatchSpike, Divergence
from opposing_signals.record import Record
from opposing_signals.report.result import entry
from opposing_signals.signals import OpposingPair, Spike, Trajectory, find_spikes, name_group
from opposing_signals.studies.claim import Claim
from opposing_signals.studies.groups.claims import (
    group_amplitude_ratio,
    pair_correlation,
    sharpness_over_threshold,
    spike_concentration,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE = "own"
"""What stands in the place of a scale where a record is of one's own model."""

_NAMED = 20  # examples of a group that are named
_QUOTED = 4  # texts of a group that are quoted
_WIDTH = 70  # characters of a quotation

CLAIMS = (
    Claim(
        "own_opposition",
        "The two groups of each dominant pair change in opposite directions, step after step",
        "Figure 1, §2",
        pair_correlation,
        "< -0.8",
    ),
    Claim(
        "own_amplitude",
        "A dominant group's loss changes far more in a step than a random group's",
        "Figure 1, §1",
        group_amplitude_ratio,
        "> 5",
    ),
    Claim(
        "own_concentration",
        "A few points carry much of the rise when the loss spikes",
        "Figure 1, §1",
        partial(spike_concentration, points=0.01),
        "> 0.20",
    ),
)
"""Figure 1's claims and thresholds, where they need no more than losses."""

EDGE = Claim(
    "own_edge",
    "From break-even on, the sharpness stays near 2/η",
    "Figure 1, §1",
    sharpness_over_threshold,
    "in [0.8, 2.0]",
)
"""For gradient steps of one size without momentum, whose threshold is 2/η, and only if λ was measured."""


FLOOR = 3.0
"""A rise of the mean loss is a spike if it is more than this many times the typical change."""

PAIRS = 3
"""Opposing pairs that are told."""

_BATCHES = (quantities.TRAIN_LOSS, quantities.BATCH_LOSS, quantities.BATCH_SIZE, quantities.GRADIENT_NORM)


@dataclass(frozen=True)
class Explanation:
    """What a record says.

    Attributes:
        lines: For a reader; leading spaces indent what belongs to the line above.
        findings: The same as JSON values: ``measured``, ``divergence``, ``pairs``, ``spikes``, ``batch_spikes``,
            ``groups``, ``sharpness``.
    """

    lines: tuple[str, ...]
    findings: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def as_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"lines": list(self.lines), **self.findings}


def explain(folder: str | Path, spikes: int = 3, named_data: bool = False) -> Explanation:
    """Say what a run's record shows: what was measured, where training diverged, which groups of examples oppose each
    other, and who carried its loss spikes; draw it, and check figure 1's claims.

    The folder gets ``figure.png``, ``explanation.json``, ``claims.json`` and ``experiment.json``, which the report
    shows.

    Args:
        folder: Of the record.
        spikes: How many spikes are explained.
        named_data: Read also text that lies where the record says it does, for a record that is trusted.

    Raises:
        InputError: There is no record, or it has neither per-sample losses of two successive steps nor the losses of
            training batches.
    """
    record = Record(folder)
    trajectory = Trajectory(record, named_data=named_data)
    has_changes = _check(trajectory)
    batches = Batches(record)
    lines, findings = _measured(trajectory)
    divergence = batches.divergence()
    lines += _told_divergence(divergence)
    findings["divergence"] = None if divergence is None else divergence.as_json()
    found: list[Spike] = []
    if has_changes:
        pairs = trajectory.all_pairs[:PAIRS]
        lines += [line for number, pair in enumerate(pairs, 1) for line in _told_pair(number, pair, trajectory)]
        if not pairs:
            lines.append("no opposing pair was found that chance would not show too")
        found = find_spikes(trajectory, spikes)
        lines += _told_spikes(found, trajectory, batches)
        findings["pairs"] = [_pair_as_json(pair, trajectory) for pair in pairs]
        findings["spikes"] = [_spike_as_json(spike, trajectory, batches) for spike in found if _is_spike(spike)]
        told, findings["groups"] = _told_groups(trajectory)
        lines += told
    jumped = batches.spikes(spikes)
    lines += [line for spike in jumped for line in _told_batch(spike)]
    findings["batch_spikes"] = [spike.as_json() for spike in jumped]
    told, findings["sharpness"] = _told_sharpness(record)
    lines += told
    explanation = Explanation(tuple(lines), findings)
    _write(trajectory, explanation, found, has_changes, folder)
    return explanation


def _write(
    trajectory: Trajectory, explanation: Explanation, found: list[Spike], has_changes: bool, folder: str | Path
) -> None:
    """Figure, claims, and what the report reads."""
    import matplotlib.pyplot as plt

    from opposing_signals.studies.groups.figures import group_losses
    from opposing_signals.studies.groups.spikes import loss_spikes

    record = trajectory.record
    run = trajectory.configuration["run"]["name"]
    seed: Any = trajectory.configuration.get("seed")  # null where the user set none
    has_edge = trajectory.edge is not None and "sharpness" in record
    claims = ((*CLAIMS, EDGE) if has_edge else CLAIMS) if has_changes else ()
    checked = [claim.check({run: trajectory}, SCALE, seed) for claim in claims]
    paired = [spike for spike in found if spike.correlation is not None]
    if not has_changes:
        figure = _drawn_batches(trajectory)
    elif found:
        figure = loss_spikes(trajectory, paired or found)
    else:
        figure = group_losses({run: trajectory})
    with replacing(record.folder / "figure.png") as unfinished:
        figure.savefig(unfinished, dpi=150)
    plt.close(figure)
    write_json(record.folder / "explanation.json", explanation.as_json())
    write_json(record.folder / "claims.json", [verdict.as_json() for verdict in checked])
    write_json(
        record.folder / "experiment.json",
        {
            "name": run,
            "title": f"Opposing signals in {trajectory.configuration['model']['_target_'].rpartition('.')[2]}",
            "command": f"opposing-signals explain {Path(folder).as_posix()}",
            "scale": SCALE,
            "seed": "unknown" if seed is None else seed,
            "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": list(explanation.lines),
            "runs": {
                run: {
                    "folder": record.folder.name,
                    "configuration": record.configuration,
                    "provenance": record.provenance,
                }
            },
        },
    )


def _check(trajectory: Trajectory) -> bool:
    """Whether there are changes of per-sample losses; refuse what is damaged, or has nothing to explain."""
    record = trajectory.record
    record.verify(("sample_loss", "sharpness", "learning_rate", quantities.BATCH_INDEX, *_BATCHES))
    has_batches = any(quantity in record and len(record[quantity]) for quantity in _BATCHES[:2])
    if ("sample_loss" not in record or not len(record["sample_loss"])) and not has_batches:
        raise InputError(
            f"{record.folder} holds no per-sample losses (it holds {', '.join(record) or 'nothing'}): expected the "
            "record of a run with a Follower, the callback OpposingSignals or the instrument sample_losses"
        )
    has_changes = "sample_loss" in record and len(record["sample_loss"]) > 0
    if has_changes:
        values = trajectory.losses.values
        if values.ndim != 2 or values.dtype.kind != "f":
            raise InputError(f"{record.folder / 'sample_loss.npy'}: expected one number an example, not {values.dtype}")
        has_changes = bool((np.diff(np.asarray(trajectory.losses.steps)) == 1).any())
    if not has_changes and not has_batches:
        raise InputError(
            f"{record.folder} holds losses of {len(record['sample_loss'])} steps, no two of them successive: expected "
            "consecutive=2 or more, and enough training for the second measurement"
        )
    for file, content, path in (
        ("configuration.json", record.configuration, ("run", "name")),
        ("configuration.json", record.configuration, ("model", "_target_")),
        ("configuration.json", record.configuration, ("optimizer", "_target_")),
        ("configuration.json", record.configuration, ("data", "_target_")),
        ("provenance.json", record.provenance, ("data", "name")),
    ):
        if not isinstance(entry(content, *path), str):
            raise InputError(f"{record.folder / file} has no {'.'.join(path)}: expected the record of a training")
    if has_changes:
        points = trajectory.losses.values.shape[1]
        positions(record.folder, points)
        if len(trajectory.dataset) != points:
            raise InputError(
                f"{record.folder} holds losses of {points} examples, and its data set {trajectory.dataset.name} has "
                f"{len(trajectory.dataset)}: expected as many"
            )
    return has_changes


def _is_spike(spike: Spike) -> bool:
    return not spike.typical > 0 or spike.rise > FLOOR * spike.typical


def _measured(trajectory: Trajectory) -> tuple[list[str], dict[str, Any]]:
    """How much of the run the rest rests on."""
    record, origin = trajectory.record, trajectory.record.provenance
    steps = np.asarray(record["sample_loss"].steps) if "sample_loss" in record else np.empty(0, np.int64)
    trained = record[quantities.TRAIN_LOSS].steps if quantities.TRAIN_LOSS in record else steps
    last = max([int(one[-1]) for one in (steps, trained) if len(one)], default=-1)
    first = min([int(one[0]) for one in (steps, trained) if len(one)], default=0)
    findings: dict[str, Any] = {
        "run": trajectory.configuration["run"]["name"],
        "measured": len(steps),
        "steps": last - first + 1,
        "changes": int((np.diff(steps) == 1).sum()),
        "state": record.state,
    }
    line = (
        f"{findings['run']}: measured {len(steps)} of {findings['steps']} steps ({first} to {last}), "
        f"{findings['changes']} changes; {origin['data']['name']}"
    )
    measuring, training = origin.get("measuring_seconds"), origin.get("training_seconds")
    if isinstance(measuring, float) and isinstance(training, float) and training > measuring:
        rest = training - measuring
        findings["overhead"] = measuring / rest
        line += f"; measuring took {measuring / rest:.1%} of the {rest:.1f} s of training"
    lines = [line]
    lines += [
        f"{what.replace('_', ' ')}: {origin[what]}"
        for what in ("batch_rows", "sharpness")
        if isinstance(origin.get(what), str)
    ]
    if record.state.startswith("stopped"):
        lines.append(record.state)
    return lines, findings


def _told_divergence(divergence: Divergence | None) -> list[str]:
    if divergence is None:
        return []
    if divergence.is_finite:
        lines = [f"the training diverged: from step {divergence.step} on the train loss stays far above its start"]
    else:
        lines = [f"the training diverged: its loss is not finite from step {divergence.step} on"]
    if divergence.row_step is not None:
        example = f"train_dataset[{divergence.row}]" if (divergence.row or 0) >= 0 else "a row of the batch"
        lines.append(f"  first not finite in a batch: {example}, at step {divergence.row_step}")
    for quantity, values in divergence.before.items():
        if values:
            shown = ", ".join(f"{value:.4g}" for value in values)
            lines.append(f"  {quantity.replace('_', ' ')} of the steps before: {shown}")
    return lines + [f"  {reason}" for reason in divergence.reasons]


def _told_pair(number: int, pair: OpposingPair, trajectory: Trajectory) -> list[str]:
    chance = f", p < {max(pair.p_value, 1e-99):.1g}" if np.isfinite(pair.p_value) else ""
    return [
        f"pair {number}: {len(pair.rising)} examples against {len(pair.falling)}, steps {pair.window[0]} to "
        f"{pair.window[1]} (correlation of the two groups {pair.correlation:.2f}{chance}; amplitude "
        f"{pair.amplitude:.3g})",
        f"  one side: {_who(pair.rising, trajectory)}",
        f"  other side: {_who(pair.falling, trajectory)}",
    ]


def _pair_as_json(pair: OpposingPair, trajectory: Trajectory) -> dict[str, Any]:
    place = positions(trajectory.record.folder, len(trajectory.dataset))
    return {
        "rising": place[pair.rising].tolist(),
        "falling": place[pair.falling].tolist(),
        "window": list(pair.window),
        "correlation": pair.correlation,
        "amplitude": pair.amplitude,
        "p_value": pair.p_value if np.isfinite(pair.p_value) else None,
    }


def _spike_as_json(spike: Spike, trajectory: Trajectory, batches: Batches) -> dict[str, Any]:
    place = positions(trajectory.record.folder, len(trajectory.dataset))
    return {
        "step": spike.step,
        "before": spike.before,
        "after": spike.after,
        "typical": spike.typical,
        "share": spike.share,
        "correlation": spike.correlation,
        "rising": place[spike.rising].tolist(),
        "falling": place[spike.falling].tolist(),
        "reasons": list(batches.reasons(spike.step)),
    }


def _told_spikes(found: list[Spike], trajectory: Trajectory, batches: Batches) -> list[str]:
    if not found:
        return ["the mean loss never rose in a measured step: there is no spike to explain"]
    spikes = [spike for spike in found if _is_spike(spike)]
    if not spikes:
        largest = found[0]
        return [
            f"no spike in the measured steps: the largest rise of the mean loss, at step {largest.step}, is "
            f"{largest.rise / largest.typical:.1f} times the typical change (a spike is more than {FLOOR:g} times)"
        ]
    lines = []
    for spike in spikes:
        lines += [*_told(spike, trajectory), *(f"  {reason}" for reason in batches.reasons(spike.step))]
    return lines


def _told_batch(spike: BatchSpike) -> list[str]:
    lines = [f"batch of step {spike.step}: train loss {spike.loss:.4g}, of the steps before {spike.usual:.4g}"]
    lines += [f"  {reason}" for reason in spike.reasons]
    if spike.rows:
        named = ", ".join(
            f"{f'train_dataset[{row}]' if row >= 0 else 'a row'} {loss:.3g}"
            for row, loss in zip(spike.rows, spike.losses, strict=True)
        )
        share = f"carried {spike.share:.0%} of what stands above that" if np.isfinite(spike.share) else "largest"
        lines.append(f"  its {len(spike.rows)} largest rows {share}: {named}")
    return lines


def _told_groups(trajectory: Trajectory) -> tuple[list[str], dict[str, Any]]:
    """The user's own groups: their losses, and which of them move against each other."""
    groups = {name: group for name, group in user_groups(trajectory.record.folder).items() if len(group)}
    losses, changes = trajectory.losses.values, trajectory.changes.values
    courses = {name: changes[:, group].mean(1, dtype=np.float64) for name, group in groups.items()}
    lines, findings = [], {}
    for name, group in groups.items():
        start, end = (float(losses[row][group].mean()) for row in (0, -1))
        line = f"group {name} ({len(group)} examples): mean loss from {start:.4g} to {end:.4g}"
        others = {
            other: float(np.corrcoef(courses[name], course)[0, 1])
            for other, course in courses.items()
            if other != name and len(course) > 2 and course.std() > 0 and courses[name].std() > 0
        }
        if others:
            against = min(others, key=lambda other: others[other])
            line += f"; its changes correlate {others[against]:.2f} with those of {against}"
        lines.append(line)
        findings[name] = {"examples": len(group), "first": start, "last": end, "correlations": others}
    return lines, findings


def _told_sharpness(record: Record) -> tuple[list[str], dict[str, Any] | None]:
    """λ with what bounds it: no eigenvector's Rayleigh quotient exceeds it."""
    names = ("sharpness", "sharpness_quotient", "sharpness_residual")
    if any(name not in record or not len(record[name]) for name in names):
        return [], None
    value, quotient, residual = (float(record[name].values[-1]) for name in names)
    step = int(record["sharpness"].steps[-1])
    told = {"step": step, "value": value, "at_least": quotient, "residual": residual}
    return [
        f"sharpness at step {step}: λ about {value:.4g}, at least {quotient:.4g} (Rayleigh quotient; residual "
        f"{residual:.2g})"
    ], told


def _drawn_batches(trajectory: Trajectory) -> Figure:
    """The train loss, and the largest loss of a row, where nothing else was measured."""
    from opposing_signals.studies import style

    record = trajectory.record
    figure = style.figure(8, 4, trajectory.title)
    axes = figure.add_subplot()
    if quantities.BATCH_LOSS in record:
        rows = record[quantities.BATCH_LOSS]
        axes.plot(rows.steps, np.nanmax(rows.values, 1), color=style.MUTED, label="largest row of the batch")
    if quantities.TRAIN_LOSS in record:
        train = record[quantities.TRAIN_LOSS]
        axes.plot(train.steps, train.values, color=style.INK, label="train loss")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    return figure


def _told(spike: Spike, trajectory: Trajectory) -> list[str]:
    size = f"{spike.rise / spike.typical:.1f} times the typical change" if spike.typical > 0 else "the only change"
    losses = f"from {spike.before:.4g} to {spike.after:.4g}"
    first = f"step {spike.step}: the mean loss rose {losses} (+{spike.rise:.3g}, {size})"
    carried = (
        f"{len(spike.rising)} examples, {spike.expected:.1%} of those followed, carried {spike.share:.0%} of the rise"
    )
    if spike.correlation is None:
        return [
            first,
            f"  no opposing pair was found around it; the {carried}",
            f"  rising: {_named(spike.rising, spike.change[0], trajectory)}",
        ]
    return [
        first,
        f"  {carried}, against {len(spike.falling)} that fell (correlation of the two groups {spike.correlation:.2f})",
        f"  rising: {_named(spike.rising, spike.change[0], trajectory)}",
        f"  falling: {_named(spike.falling, spike.change[1], trajectory)}",
        f"  in short: {name_group(trajectory.dataset, spike.rising)} against "
        f"{name_group(trajectory.dataset, spike.falling)}",
    ]


def _named(group: np.ndarray, change: float, trajectory: Trajectory) -> str:
    return f"{change:+.3g} on average; {_who(group, trajectory)}"


def _who(group: np.ndarray, trajectory: Trajectory) -> str:
    """For instance "12 "4", 8 "9"; 19 of them in group stripes; examples 17, 240, …"."""
    dataset = trajectory.dataset
    indices = positions(trajectory.record.folder, len(dataset))[group[:_NAMED]]
    parts = []
    if dataset.targets.ndim == 1 and dataset.is_classification and len(dataset.class_names) > 1:
        counts = Counter(dataset.class_names[int(dataset.targets[int(i)])] for i in group)
        parts.append(", ".join(f"{number} {name}" for name, number in counts.most_common()))
    for name, members in user_groups(trajectory.record.folder).items():
        shared = len(np.intersect1d(group, members))
        if shared:
            parts.append(f"{shared} of them in group {name} ({len(members)})")
    parts.append(f"examples {', '.join(map(str, indices))}{', …' if len(group) > _NAMED else ''}")
    if dataset.targets.ndim == 2 and dataset.is_classification:
        texts = [decode(dataset.inputs[int(i)].tolist(), dataset.class_names) for i in group[:_QUOTED]]
        parts.append(f"such as {', '.join(repr(_shorten(text)) for text in texts)}")
    return "; ".join(parts)


def _shorten(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "…"
