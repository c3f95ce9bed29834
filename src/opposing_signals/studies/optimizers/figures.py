"""Figures 6a, 37 and 39 to 44: opposing groups under SGD, and update rules over a grid of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from opposing_signals.record.quantities import SIGNED_SHARE, TEST_ACCURACY, TRAIN_LOSS
from opposing_signals.signals import OpposingPair, Runs, Trajectory, name_pair
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import moving_average
from opposing_signals.studies.groups.figures import draw_members, draw_pair
from opposing_signals.studies.optimizers.rules import Quantity, Rule, final, steps_of_epoch, under

LABELS: dict[str, str] = {
    TRAIN_LOSS: "train loss",
    TEST_ACCURACY: "test accuracy",
    SIGNED_SHARE: "share of signed steps",
}
PLAIN_BAND = (0.2, 0.3)
"""The paper's fraction of signed steps: 70% to 80% of the parameters take the plain step (Appendix F.1)."""
SIGNED_BAND = (0.1, 0.25)
"""The same fraction by §4.2."""
TONES = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))
"""viridis without the tones that are too light for a line."""

# -- figures 6a and 37 ------------------------------------------------------------------------------------------------


def sgd_groups(trajectories: Mapping[str, Trajectory], zoom: int = 40) -> Figure:
    """The train loss, and the losses and images of each dominant pair around its selecting step.

    Args:
        zoom: Steps shown per pair.
    """
    (trajectory,) = trajectories.values()
    pairs = trajectory.pairs_in_time
    title = style.about("Losses of opposing groups under SGD", trajectories)
    figure = style.figure(13, 1.8 + 2.3 * len(pairs), f"{title}, batch {trajectory.configuration['batch']}")
    grid = figure.add_gridspec(1 + len(pairs), 2, height_ratios=[0.5, *[1] * len(pairs)], width_ratios=[1.4, 1])
    overview = figure.add_subplot(grid[0, :])
    style.draw(overview, trajectory.mean_loss, color=style.INK)
    top = float(np.nanmax(trajectory.mean_loss.values))
    overview.set(ylabel="train loss", xlabel="step (bars: shown below)", ylim=(0, top * (1.1 + 0.15 * len(pairs))))
    for number, pair in enumerate(pairs):
        first, last = _shown(pair, zoom)
        colour = style.PAIRS[number % 4][0]
        overview.plot([first, last], [top * (1.1 + 0.15 * number)] * 2, color=colour, linewidth=3)
        axes = figure.add_subplot(grid[1 + number, 0])
        draw_pair(axes, trajectory, pair, number, first, last)
        title = f"pair {number + 1}: {name_pair(trajectory.dataset, pair)}; correlation of changes"
        axes.set_title(f"{title} {pair.correlation:.2f}".replace("-", "\u2212"), color=colour)
        axes.set(xlabel="step", ylabel="loss")
        style.legend_above(axes, 4)
        draw_members(figure, grid[1 + number, 1], trajectory.dataset, pair, number, len(pair.rising))
    return figure


def _shown(pair: OpposingPair, zoom: int) -> tuple[int, int]:
    """First and last step shown of a pair: around its selecting step, while it is active."""
    first = int(np.clip(pair.step - zoom // 2, pair.window[0], max(pair.window[0], pair.window[1] - zoom)))
    return first, min(first + zoom, pair.window[1] + 1)


# -- figures 39 to 44 -------------------------------------------------------------------------------------------------


def rules(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Figure 39: train loss and test accuracy of every run, and SplitSGD's share of signed steps."""
    runs = Runs.of(trajectories).with_stopped
    looks = style.looks(name for name in runs if Rule.of(runs[name]).name != "SplitSGD")
    figure, panels = _panels(runs, "SGD over step sizes, momentum and dampening against SplitSGD", 3)
    for name, run in runs.items():
        look = looks.get(name, {"color": style.INK, "linewidth": 2})
        _draw_run(panels, run, **look, label=str(Rule.of(run)))
    _finish(panels, runs)
    style.legend_beside(figure, panels[0])
    return figure


def plain_step_sizes(trajectories: Mapping[str, Trajectory], dampening: float = 0.9) -> Figure:
    """Figures 40, 43b and 44a: SplitSGD with dampening τ over η1, and Adam.

    Args:
        dampening: τ of the runs shown.
    """
    runs = Runs.of(trajectories).with_stopped
    split, adam = under(runs, "SplitSGD", dampening), under(runs, "Adam")
    title = f"SplitSGD with τ = {dampening:g} over the plain step's size η₁, against Adam"
    figure, panels = _panels(runs, title, 4)
    _draw_plain_step_sizes(figure, panels[:3], split)
    for rule, run in adam.items():
        _draw_run(panels, run, color=style.INK, linestyle="--", linewidth=1.6, label=str(rule))
    _finish(panels[:3], runs)
    _draw_final_losses(panels[3], split, adam)
    style.legend_above(panels[0], 2)
    return figure


def _draw_final_losses(axes: Axes, split: Mapping[Rule, Trajectory], adam: Mapping[Rule, Trajectory]) -> None:
    """The final train loss over η1, and Adam's with a band of ±10%; a run that was stopped has none."""
    ends = {rule.sgd_lr or 0.0: final(run).mean() for rule, run in split.items()}
    ends = {size: end for size, end in ends.items() if np.isfinite(end)}
    plain = {size: end for size, end in ends.items() if size}
    axes.plot(list(plain), list(plain.values()), "o-", color=style.RUNS[0], label="SplitSGD")
    if 0.0 in ends:
        axes.axhline(ends[0.0], color=style.RUNS[1], linestyle=":", label="SplitSGD η₁ = 0")
    for rule, run in adam.items():
        end = final(run).mean()
        if not np.isfinite(end):
            continue
        axes.axhline(end, color=style.INK, linestyle="--", label=str(rule))
        axes.axhspan(0.9 * end, 1.1 * end, color=style.GREY, zorder=0)
    if plain:
        axes.set_xscale("log")
    axes.set(xlabel="η₁ of SplitSGD", ylabel="final train loss", title="at the end (band: Adam ± 10%)")
    axes.margins(y=0.1)
    style.legend_above(axes, 2)


def signed_shares(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Figure 44b: SplitSGD's share of signed steps, one panel for each dampening."""
    runs = Runs.of(trajectories).with_stopped
    dampenings = sorted({Rule.of(run).dampening or 0.0 for run in runs.values()})
    figure, panels = _panels(runs, "Share of the parameters that SplitSGD moves by a signed step", len(dampenings))
    for axes, dampening in zip(panels, dampenings, strict=True):
        chosen = under(runs, "SplitSGD", dampening)
        last = dampening == dampenings[-1]
        _draw_plain_step_sizes(figure if last else None, [axes], chosen, [SIGNED_SHARE])
        axes.set(xlabel="step", ylabel=LABELS[SIGNED_SHARE], ylim=(0, 1))
        _band(axes, SIGNED_BAND, f"τ = {dampening:g}, ")
    return figure


def learning_rates(trajectories: Mapping[str, Trajectory], quantity: Quantity) -> Figure:
    """Figures 41 and 42: Adam and SplitSGD over learning rates.

    Args:
        quantity: The quantity drawn.
    """
    runs = Runs.of(trajectories).with_stopped
    figure, panels = _panels(runs, f"Adam and SplitSGD over learning rates: {LABELS[quantity]}", 3)
    for axes, name in zip(panels, ("Adam", "SplitSGD"), strict=False):
        chosen = under(runs, name)
        for (rule, run), look in zip(chosen.items(), style.ordered_looks(len(chosen)), strict=True):
            _draw_run([axes], run, [quantity], **look, label=f"{_lr(name)} = {rule.lr:g}")
        axes.set(title=name, xlabel="step", ylabel=LABELS[quantity])
        style.legend_above(axes, 3)
    _same_limits(panels[:2])
    _draw_final(panels[2], runs, ("Adam", "SplitSGD"), quantity)
    return figure


def learning_rates_of_both(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Figure 43a: SGD with momentum and Adam over learning rates, train loss and test accuracy."""
    runs = Runs.of(trajectories).with_stopped
    figure, panels = _panels(runs, "SGD with momentum and Adam over learning rates", 3)
    for name, tones, width in (("SGD", "Blues", 1.2), ("Adam", "Oranges", 2.0)):
        chosen = under(runs, name)
        shades = matplotlib.colormaps[tones](np.linspace(0.45, 1, len(chosen)))
        for (rule, run), shade, look in zip(chosen.items(), shades, style.ordered_looks(len(chosen)), strict=True):
            look |= {"color": tuple(shade), "linewidth": width}
            _draw_run(panels[:2], run, **look, label=f"{name} η = {rule.lr:g}")
    _finish(panels[:2], runs)
    style.legend_above(panels[0], 2)
    _draw_final(panels[2], runs, ("SGD", "Adam"), TRAIN_LOSS)
    return figure


def _panels(runs: Mapping[str, Trajectory], title: str, count: int) -> tuple[Figure, list[Axes]]:
    run = next(iter(runs.values()))
    data, batch = run.record.provenance["data"]["name"], run.configuration["batch"]
    figure = style.figure(4.2 * count, 4, f"{title}\n{run.network}, {data}, batch {batch}")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def _draw_run(panels: Sequence[Axes], run: Trajectory, quantities: Sequence[str] = tuple(LABELS), **line: Any) -> None:
    """A line in each panel whose quantity was recorded; the train loss is the batches', averaged over an epoch."""
    for axes, quantity in zip(panels, quantities, strict=False):
        if quantity in run.record:
            series = run.record[quantity]
            steps, values = np.asarray(series.steps), np.asarray(series.values, float)
            steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]  # not the last of a stopped run
            if quantity == TRAIN_LOSS and len(values):
                values = moving_average(values, steps_of_epoch(run))
            axes.plot(steps, values, **line)


def _draw_plain_step_sizes(
    figure: Figure | None,
    panels: Sequence[Axes],
    chosen: Mapping[Rule, Trajectory],
    quantities: Sequence[str] = tuple(LABELS),
) -> None:
    """Lines coloured by η1, with a colour bar; η1 = 0 has a colour of its own."""
    sizes = [rule.sgd_lr for rule in chosen if rule.sgd_lr]
    norm = LogNorm(min(sizes, default=1), max(sizes, default=10))
    for rule, run in sorted(chosen.items(), key=lambda item: -(item[0].sgd_lr or 0.0)):
        if rule.sgd_lr:
            _draw_run(panels, run, quantities, color=TONES(norm(rule.sgd_lr)), linewidth=1.0)
        else:
            line = {"color": style.RUNS[1], "linestyle": ":", "linewidth": 2.0, "label": f"{rule.name} η₁ = 0"}
            _draw_run(panels, run, quantities, **line)
    if figure is not None and len(sizes) > 1:
        figure.colorbar(ScalarMappable(norm, TONES), ax=panels[-1], label="η₁ of SplitSGD")


def _draw_final(axes: Axes, runs: Mapping[str, Trajectory], names: Sequence[str], quantity: Quantity) -> None:
    """The final value over the learning rate, one line for each rule."""
    for name, look in zip(names, style.GROUPS, strict=True):
        chosen = under(runs, name)
        rates = [rule.lr for rule in chosen]
        axes.plot(rates, [final(run, quantity).mean() for run in chosen.values()], **look, label=name)
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"final {LABELS[quantity]}", title="at the end")
    rates = sorted({rule.lr for name in names for rule in under(runs, name)})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    style.legend_above(axes, 2)


def _finish(panels: Sequence[Axes], runs: Mapping[str, Trajectory]) -> None:
    """Add labels, and limit the loss axis to 1.5 times the smallest initial loss."""
    for axes, quantity in zip(panels, LABELS, strict=False):
        axes.set(xlabel="step", ylabel=LABELS[quantity])
        if quantity == SIGNED_SHARE:
            axes.set_ylim(0, 1)
            _band(axes, PLAIN_BAND)
    starts = [float(run.record[TRAIN_LOSS].values[0]) for run in runs.values()]
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(max(0, bottom), min([top, *(1.5 * start for start in starts if np.isfinite(start))]))


def _band(axes: Axes, interval: tuple[float, float], before: str = "") -> None:
    """Shade the paper's range of the fraction, and name it in the title, where no curve crosses it."""
    axes.axhspan(*interval, color=style.GREY, zorder=0)
    axes.set_title(f"{before}grey: the paper's {interval[0]:.0%} to {interval[1]:.0%}")


def _same_limits(panels: Sequence[Axes]) -> None:
    low, high = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(low), max(high))


def _lr(name: str) -> str:
    return "η₂" if name == "SplitSGD" else "η"
