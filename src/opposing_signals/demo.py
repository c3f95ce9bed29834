"""``opposing-signals demo [FOLDER]``: three pictures that show the finding, in two minutes and without a data set.

Work that does not need torch comes before its import, so that the first line appears at once.
"""

from __future__ import annotations

import json
import runpy
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opposing_signals.configuration import shipped_folder
from opposing_signals.terminal import console

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from opposing_signals.signals import Spike, Trajectory

FOLDER = Path("outputs", "demo")
DIGITS, PLANTED, CURVE = "digits", "demo_planted", "fig03_chebyshev"
"""The parts, and the names of their folders."""

MEANING = (
    "PASS: the value meets a threshold that was fixed before the run. FAIL: it does not, and is shown as it is; no "
    "threshold is moved to make it pass. INCONCLUSIVE: this run cannot tell."
)


def demo(
    folder: Path, epochs: int = 20, planted: Sequence[str] = ("scale=cpu",), curve: Sequence[str] = ("scale=paper",)
) -> int:
    """Run the three parts, write the page of their results, and print what was seen.

    Args:
        folder: Where runs, results and page are written; what is already there is reused.
        epochs: Passes through the digits.
        planted: Settings of the run on synthetic images.
        curve: Settings of figure 3's run.

    Returns:
        0.
    """
    out = console(markup=False)
    out.print(f"Three pictures of opposing signals, written to {folder}; two minutes on two slow cores.\n")
    out.print("1 of 3: real images. A small network learns scikit-learn's digits, watched by one callback.")
    with out.status("training"):
        spike, trajectory = _digits(folder / DIGITS, epochs, out)
    out.print("\n2 of 3: planted truth. Drawn images of which it is known who opposes whom.")
    _experiment(PLANTED, planted, folder)
    out.print("\n3 of 3: the paper's figure 3. A curve without outliers.")
    _experiment(CURVE, curve, folder)
    from opposing_signals.report import build

    page = build([folder], folder / "report" / "index.html")
    for line in _seen(folder, page, spike, trajectory):
        out.print(line, soft_wrap=line.startswith("  "))
    return 0


def _digits(folder: Path, epochs: int, out: Console) -> tuple[Spike | None, Trajectory]:
    """Train on the digits as ``examples/digits.py`` does, unless done, and explain the most strongly opposed spike."""
    import torch

    from opposing_signals.follow.explanation import explain
    from opposing_signals.record import Record
    from opposing_signals.signals import Trajectory, find_spikes
    from opposing_signals.training.job import quieten_lightning

    if (folder / "configuration.json").is_file() and not Record(folder).is_complete:
        shutil.rmtree(folder)  # an interrupted demo's
    if not folder.is_dir():
        quieten_lightning()
        torch.set_num_threads(1)  # the demo's networks are too small to profit from a second thread
        example = runpy.run_path(str(shipped_folder("examples") / "digits.py"), run_name="opposing_signals.examples")
        example["train"](str(folder), epochs)
    explanation = list(explain(folder).lines)
    trajectory = Trajectory(Record(folder))
    spike = _most_opposed(find_spikes(trajectory))
    if spike is not None:
        first = next((i for i, line in enumerate(explanation) if line.startswith(f"step {spike.step}:")), 0)
        explanation = explanation[first : first + 4]
    out.print("\n".join(explanation), f"all of it: opposing-signals explain {folder}", sep="\n", soft_wrap=True)
    return spike, trajectory


def _experiment(name: str, settings: Sequence[str], folder: Path) -> None:
    from opposing_signals.app.command import run

    run([f"experiment={name}", *settings, "threads=1", "logger=none", f"output_dir={folder}"])


def _seen(folder: Path, page: Path, spike: Spike | None, trajectory: Trajectory) -> list[str]:
    """The end of the demo in plain words; lines that begin with two spaces are not broken."""
    from opposing_signals.experiments import experiments

    planted, curve = _claims(folder / PLANTED), _claims(folder / CURVE)
    reason = curve["fig03a"]["reason"]
    cost = experiments()["fig06a_sgd_groups"][1]["cpu"]
    return [
        "\nWhat was seen",
        f"1. Real images. {_told(spike, trajectory)}",
        f"  {folder / DIGITS / 'figure.png'}",
        f"2. Planted truth. {_found(folder)} F1 of the members: {_value(planted, 'planteda')}. Do the losses of the "
        f"planted groups move against each other? Correlation {_value(planted, 'plantedb')}.",
        f"  {folder / PLANTED / 'figure.png'}",
        f"3. Figure 3. Do points of one smooth curve oppose each other too? Correlation of the weakest dominant pair "
        f"{_value(curve, 'fig03b')}; the largest λ/(2/η): {_value(curve, 'fig03c')}. Is a pair an "
        f"interval of x and its neighbours, as the paper's is? Coverage {_value(curve, 'fig03a')}"
        + (f", {reason}." if reason else "."),
        f"  {folder / CURVE / 'figure.png'}",
        "\nWhat the verdicts mean",
        MEANING,
        f"Here: {_counted(planted)} for the planted pair, {_counted(curve)} for figure 3. The digits are held against "
        f"figure 1's thresholds, which were set for large networks under gradient descent on all images: "
        f"{_counted(_claims(folder / DIGITS))}.",
        "\nWhat to do next",
        f"  open {page} in a browser: the pictures, the verdicts, and every step of every run",
        "  your own model, by one callback, and then opposing-signals explain outputs/mine:",
        '      signals = OpposingSignals(train_dataset, per_sample_loss, folder="outputs/mine")',
        "      Trainer(callbacks=[signals]).fit(module, loader)",
        f"  figure 6a of the paper on CIFAR-10, {cost} on two cores: opposing-signals fig6a",
    ]


def _found(folder: Path) -> str:
    """The dominant pair found in the planted run, and the planted pair nearest to it."""
    from opposing_signals.record import Record
    from opposing_signals.signals import Trajectory, nearest_planted
    from opposing_signals.studies.groups.figures import classes

    (run,) = json.loads((folder / PLANTED / "experiment.json").read_text(encoding="utf-8"))["runs"].values()
    trajectory = Trajectory(Record(folder / "runs" / run["folder"]))
    if not trajectory.all_pairs:
        return "No opposing pair was found."
    pair, dataset = trajectory.all_pairs[0], trajectory.dataset
    planted = nearest_planted(pair, dataset, list(dataset.truth))

    def who(groups: tuple[np.ndarray, np.ndarray]) -> str:
        return " against ".join(classes(dataset, group) for group in groups)

    beside = f" Planted, with {planted[0]}: {who(planted[1])}." if planted else ""
    return f"The losses alone single out {who(pair.groups)}.{beside}"


def _claims(folder: Path) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in json.loads((folder / "claims.json").read_text(encoding="utf-8"))}


def _value(claims: dict[str, dict[str, Any]], claim: str) -> str:
    """For instance "0.942 (>= 0.8: PASS)"."""
    found = claims[claim]
    value = "unknown" if found["value"] is None else f"{found['value']:.3g}"
    return f"{value} ({found['threshold']}: {found['verdict']})"


def _counted(claims: dict[str, dict[str, Any]]) -> str:
    """For instance "2 PASS, 1 FAIL"."""
    counts = Counter(claim["verdict"] for claim in claims.values())
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _most_opposed(spikes: list[Spike]) -> Spike | None:
    paired = [spike for spike in spikes if spike.correlation is not None]
    return min(paired, key=lambda spike: spike.correlation or 0.0, default=None)


def _told(spike: Spike | None, trajectory: Trajectory) -> str:
    from opposing_signals.studies.groups.figures import classes

    if spike is None:
        return "No spike of the loss came with two groups that moved against each other."
    dataset = trajectory.dataset
    return (
        f"When the loss rose at step {spike.step}, {len(spike.rising)} of {len(dataset)} digits "
        f"({classes(dataset, spike.rising)}) carried {spike.share:.0%} of the rise, while the loss of "
        f"{len(spike.falling)} others ({classes(dataset, spike.falling)}) fell. Around it the two groups move against "
        f"each other, step after step: correlation {spike.correlation:.2f}."
    )
