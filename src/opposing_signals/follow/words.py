"""The wording of each finding in an explanation, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from opposing_signals.data.tokenizers import decode
from opposing_signals.data.tracked import positions, user_groups
from opposing_signals.follow.evidence import Batches, BatchSpike, Divergence
from opposing_signals.record import Record, quantities
from opposing_signals.signals import OpposingPair, Spike, Trajectory, name_group

FLOOR = 3.0
"""A rise of the mean loss is a spike if it is more than this many times the typical change."""

_NAMED = 20  # number of examples named per group
_QUOTED = 4  # number of texts quoted per group
_WIDTH = 70  # width of a quotation in characters


def is_spike(spike: Spike) -> bool:
    """Whether the mean loss rose enough to call it a spike."""
    return not spike.typical > 0 or spike.rise > FLOOR * spike.typical


def measured(trajectory: Trajectory) -> tuple[list[str], dict[str, Any]]:
    """How much of the run was measured, as lines and as JSON."""
    record, origin = trajectory.record, trajectory.record.provenance
    steps = (
        np.asarray(record[quantities.SAMPLE_LOSS].steps) if quantities.SAMPLE_LOSS in record else np.empty(0, np.int64)
    )
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
        for what in ("batch_rows", quantities.SHARPNESS)
        if isinstance(origin.get(what), str)
    ]
    if record.state.startswith("stopped"):
        lines.append(record.state)
    return lines, findings


def told_divergence(divergence: Divergence | None) -> list[str]:
    """Where and how the training diverged."""
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


def told_pair(number: int, pair: OpposingPair, trajectory: Trajectory) -> list[str]:
    """Both sides of an opposing pair."""
    chance = f", p < {max(pair.p_value, 1e-99):.1g}" if np.isfinite(pair.p_value) else ""
    return [
        f"pair {number}: {len(pair.rising)} examples against {len(pair.falling)}, steps {pair.window[0]} to "
        f"{pair.window[1]} (correlation of the two groups {pair.correlation:.2f}{chance}; amplitude "
        f"{pair.amplitude:.3g})",
        f"  one side: {_who(pair.rising, trajectory)}",
        f"  other side: {_who(pair.falling, trajectory)}",
    ]


def pair_as_json(pair: OpposingPair, trajectory: Trajectory) -> dict[str, Any]:
    """A JSON object; members are indices in the user's data set."""
    place = positions(trajectory.record.folder, len(trajectory.dataset))
    return {
        "rising": place[pair.rising].tolist(),
        "falling": place[pair.falling].tolist(),
        "window": list(pair.window),
        "correlation": pair.correlation,
        "amplitude": pair.amplitude,
        "p_value": pair.p_value if np.isfinite(pair.p_value) else None,
    }


def spike_as_json(spike: Spike, trajectory: Trajectory, batches: Batches) -> dict[str, Any]:
    """A JSON object; members are indices in the user's data set."""
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


def told_spikes(found: list[Spike], trajectory: Trajectory, batches: Batches) -> list[str]:
    """Which examples carried the spikes of the measured losses, or that there is no spike."""
    if not found:
        return ["the mean loss never rose in a measured step: there is no spike to explain"]
    spikes = [spike for spike in found if is_spike(spike)]
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


def told_batch(spike: BatchSpike) -> list[str]:
    """A step whose train loss stands out, and its rows."""
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


def told_groups(trajectory: Trajectory) -> tuple[list[str], dict[str, Any]]:
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


def told_sharpness(record: Record) -> tuple[list[str], dict[str, Any] | None]:
    """λ at the last measurement, and the bounds on the largest eigenvalue."""
    values = {}
    for quantity in (quantities.SHARPNESS, quantities.SHARPNESS_QUOTIENT, quantities.SHARPNESS_BOUND):
        if quantity not in record or not len(record[quantity]):
            return [], None
        values[quantity] = float(record[quantity].values[-1])
    value, quotient, bound = values.values()
    step = int(record[quantities.SHARPNESS].steps[-1])
    above = f" and at most {bound:.4g} (with 99%)" if np.isfinite(bound) else "; nothing is known of what exceeds it"
    return [f"sharpness at step {step}: λ about {value:.4g}, at least {quotient:.4g}{above}"], {
        "step": step,
        "value": value,
        "at_least": quotient,
        "at_most": bound if np.isfinite(bound) else None,
    }


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
