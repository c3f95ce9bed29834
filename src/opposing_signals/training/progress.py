"""Progress of a run, with the time left."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from opposing_signals.record.quantities import SHARPNESS, TRAIN_LOSS
from opposing_signals.training.module import TrainingModule

Kind = frozenset[str]
"""Names of the instruments due in a step: steps of one kind take about equally long."""

_REMEMBERED = 20  # recent steps of a kind whose mean time predicts the next one
_SECONDS = {True: 0.2, False: 20.0}  # between updates of the bar on a terminal, or between lines in a log
_LEAST_BAR = 6
_ROWS = 2  # that the bar needs; tqdm draws none on a terminal that reports fewer
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class TimeLeft:
    """Estimates the time left in a run, in which steps that measure something take longer than others.

    The first step is timed apart: eigenvectors have no warm start, memory is allocated, kernels are chosen.

    Args:
        kinds: Of all remaining steps.
    """

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._to_come = Counter(kinds)
        self._usual = max(self._to_come, key=self._to_come.__getitem__, default=None)
        self._first: tuple[Kind, float] | None = None
        self._seconds: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    def note(self, kind: Kind, seconds: float) -> None:
        """Record the time of a finished step."""
        self._to_come[kind] -= 1
        if self._first is None:
            self._first = kind, seconds
        else:
            self._seconds[kind].append(seconds)

    @property
    def seconds(self) -> float | None:
        """Time of all remaining steps; None until one of the most frequent kind is over, the first step not counted."""
        if self._usual not in self._seconds:
            return None
        return sum(count * self._expected(kind) for kind, count in self._to_come.items() if count > 0)

    def _expected(self, kind: Kind) -> float:
        """Mean of its kind, else of the nearest; if only the first step was of the kind, between these two."""
        nearest = min(self._seconds, key=lambda known: len(kind ^ known))
        seconds = sum(self._seconds[nearest]) / len(self._seconds[nearest])
        if self._first is not None and self._first[0] == kind != nearest:
            return math.sqrt(seconds * max(seconds, self._first[1]))
        return seconds


class Progress(Callback):
    """One bar over the run's steps: steps done, time left, loss, sharpness. In a log file, a line every 20 seconds.

    Args:
        name: Of the run; shortened on a narrow terminal.
        steps: Of the whole run.
        instruments: By name; each tells at which steps it measures (`Instrument.is_due`).
    """

    def __init__(self, name: str, steps: int, instruments: dict[str, Any]) -> None:
        self.name = name
        self.steps = steps
        self._instruments = instruments
        self._shown: dict[str, str] = {}
        self._activity = ""
        self._done = 0
        self._bar: tqdm | None = None
        self._updated = self._step_began = 0.0
        self._left: TimeLeft

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the run's first step, which is not 0 if it resumes from a checkpoint."""
        assert isinstance(pl_module, TrainingModule)
        self._done = trainer.global_step
        self._left = TimeLeft(self._kind(step) for step in range(self._done, self.steps))
        pl_module.announce = self._announce
        self._step_began = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self.steps, initial=self._done, desc=self._name(), bar_format=_BAR, ncols=_columns(), nrows=_ROWS
            )
        self._update(is_forced=True)

    def _kind(self, step: int) -> Kind:
        return frozenset(name for name, instrument in self._instruments.items() if instrument.is_due(step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        assert isinstance(pl_module, TrainingModule)
        for quantity, symbol in ((TRAIN_LOSS, "loss"), (SHARPNESS, "λ")):
            if quantity in pl_module.scalars:
                self._shown[symbol] = f"{pl_module.scalars[quantity]:.3g}"
        now = time.monotonic()
        self._left.note(self._kind(self._done), now - self._step_began)
        self._step_began, self._activity = now, ""
        self._done += 1
        self._update()

    def _announce(self, activity: str) -> None:
        self._activity = activity
        self._update()

    def _update(self, is_forced: bool = False) -> None:
        now = time.monotonic()
        if not is_forced and now - self._updated < _SECONDS[self._bar is not None]:
            return
        self._updated = now
        if self._bar is None:
            print(
                ", ".join([f"{self.name}: step {self._done} of {self.steps}", *self._details()]),
                file=sys.stderr,
                flush=True,
            )
        else:
            self._bar.n, self._bar.ncols = self._done, _columns()
            self._bar.set_description_str(self._name(), refresh=False)
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
            self._bar.refresh()

    def _details(self) -> list[str]:
        """What the step is doing or how much time is left, and what was measured last."""
        seconds = self._left.seconds
        left = "" if seconds is None else f"{tqdm.format_interval(round(seconds))} left"
        values = [f"{symbol} {value}" for symbol, value in self._shown.items()]
        return [part for part in (self._activity or left, *values) if part]

    def _name(self) -> str:
        """The name, shortened to leave room for the rest of the bar."""
        rest = ", ".join([f" 100%|{'':{_LEAST_BAR}}| {self._done}/{self.steps}", *self._details()])
        room = _columns() - len(rest)
        return self.name if len(self.name) <= room else self.name[: max(room - 1, 0)] + "…"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        if self._done:
            self._update(is_forced=True)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line free for the message."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _columns() -> int:
    """COLUMNS, or the width of the terminal; 80 if it is unknown."""
    return shutil.get_terminal_size().columns
