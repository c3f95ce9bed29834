"""The loss of every (context, next token) of a tracking set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import Dataset
from opposing_signals.data.token_patterns import PATTERNS, check_text, pattern_points
from opposing_signals.errors import DamagedError, InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.losses import token_losses
from opposing_signals.processes import gathered
from opposing_signals.record import Record
from opposing_signals.record.quantities import (
    TOKEN_FOLLOWED,
    TOKEN_LOSS,
    TOKEN_POINTS,
    TOKEN_RISING,
    TOKEN_TOP,
    TOKEN_TOP_LOSS,
)
from opposing_signals.signals.streaming import LossChangeStream
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, Natural


class TokenLosses(Instrument):
    """Follows −log p(next token) of every token of a fixed set of training sequences (figures 7 to 9).

    A point is the index of a (context, next token) pair: n T + t for the target at position t of training sequence n.
    Where training runs in 16 bits, losses are computed in float32, and a GPU may round the factors of products to TF32.
    With such rounding, emulated on a CPU, the loss changes of a small GPT had a relative error of 5e-4 to 7e-3, against
    9e-3 to 8e-2 in bfloat16. In other precisions losses are computed as in training.

    With ``keep`` null all losses are written at each measured step, one pass per step: ``token_points`` ``[m]`` int64
    once, and ``token_loss`` ``[m]``: ℓ_i(θ_t).

    With ``keep`` k memory and disk are bounded however large the tracking set is. The changes of a measured step go
    through a `LossChangeStream`, which takes one pass at θ_t and one at θ_{t+1}, chunk by chunk, and a copy of θ_t:
    ``token_top`` ``[2, k]``: the points of the k largest rises and of the k largest falls, and ``token_top_loss``
    ``[2, 2, k]``: their losses, before and after the step;
    ``token_points`` ``[m]`` once: a uniform sample and the points of the paper's pairs, and ``token_followed``
    ``[2, m]``: their losses before and after; ``token_rising``: the fraction of all points whose loss rises. Nothing is
    written for a step before or after which a loss is not finite; training itself reports divergence.

    Args:
        consecutive: With ``keep`` null a change takes two successive steps.
        sequences: Sequences in the tracking set, evenly spaced in the data; None for all.
        with_pattern: Least number of sequences for each token pattern of `data.token_patterns`; missing ones are added,
            evenly spaced among those with the pattern; 0 for none. Without them, rare tokens have few points.
        keep: k; None keeps all.
        sample: Size of the sample that is followed with ``keep`` k.

    Raises:
        InputError: In `prepare`, the data are not text, or have fewer sequences.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 1,
        consecutive: Count = 1,
        sequences: Count | None = 64,
        with_pattern: Natural = 24,
        keep: Count | None = None,
        sample: Natural = 10_000,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.sequences = sequences
        self.with_pattern = with_pattern
        self.keep = keep
        self.needs_training = keep is not None  # then it sees θ_{t+1} as well
        self.sample = sample
        self._tracked: EmpiricalRisk
        self._points: np.ndarray
        self._named: np.ndarray
        self._before: list[Tensor] = []

    def prepare(self, dataset: Dataset) -> None:
        """Choose the tracking set."""
        check_text(dataset)
        width = dataset.inputs.shape[1]
        if self.sequences is not None and self.sequences > len(dataset):
            raise InputError(
                f"TokenLosses: sequences={self.sequences}: {dataset.name} has {len(dataset)}; expected at most as many"
            )
        named = {pattern: pattern_points(dataset, pattern) for pattern in PATTERNS}
        rows = {*_evenly(np.arange(len(dataset)), self.sequences)}
        for points in named.values():
            holding = {*np.unique(points // width)}
            others = np.array(sorted(holding - rows), dtype=np.int64)
            rows |= {*_evenly(others, max(0, self.with_pattern - len(holding & rows)))}
        chosen = np.array(sorted(rows))
        self._points = (chosen[:, None] * width + np.arange(width)).ravel()
        self._named = np.flatnonzero(np.isin(self._points, np.concatenate(list(named.values()))))
        index = torch.from_numpy(chosen)
        self._tracked = EmpiricalRisk(
            self.risk.model,
            token_losses,
            dataset.inputs[index],
            dataset.targets[index],
            chunk=min(self.risk.chunk, len(index)),
            precision="float32" if self.risk.is_halved else self.risk.precision,
            keep_outputs=False,
        )

    def before_step(self, module: TrainingModule, step: int) -> None:
        """All losses at θ_t, or a copy of θ_t."""
        self._tracked.to(self.risk.inputs.device)
        if self.keep is None:
            self._write_points(module, step, self._points)
            with self._rounding():
                losses = self._tracked.sample_losses().losses.flatten()
            self.write(module, step, TOKEN_LOSS, losses.float().cpu().numpy())
        else:
            self._before = [parameter.detach().clone() for parameter in self.risk.parameters]

    def after_step(self, module: TrainingModule, step: int) -> None:
        """The changes of the step just taken, streamed."""
        if self.keep is None:
            return
        stream = LossChangeStream(self.keep, self.sample)
        followed: list[np.ndarray] = []
        width, is_finite = self._tracked.inputs.shape[1], True
        with self._tracked.probe(), torch.no_grad(), self._rounding():
            passes = (self._tracked.losses_at(at) for at in (self._before, self._tracked.parameters))
            for rows, *chunk in zip(self._tracked.parts(), *passes, strict=True):
                before, after = (losses.flatten().float().cpu().numpy() for losses in chunk)
                if not (is_finite := bool(np.isfinite([before, after]).all())):
                    break
                first, stop = rows.start * width, rows.stop * width
                stream.update(self._points[first:stop], before, after)
                inside = self._named[(self._named >= first) & (self._named < stop)] - first
                followed.append(np.stack([before[inside], after[inside]]))
        self._before = []
        if not all(gathered([is_finite])):
            return
        stream, *others_streams = gathered([stream])
        for other in others_streams:
            stream.merge(other)
        followed = gathered(followed)
        sample = stream.sample
        others = np.flatnonzero(~np.isin(sample.ids, self._points[self._named]))
        self._write_points(module, step, np.concatenate([self._points[self._named], sample.ids[others]]))
        followed.append(np.stack([sample.before[others], sample.after[others]]))
        top = stream.risers, stream.fallers
        self.write(module, step, TOKEN_TOP, np.stack([group.ids for group in top]))
        self.write(module, step, TOKEN_TOP_LOSS, np.stack([np.stack([group.before, group.after]) for group in top]))
        self.write(module, step, TOKEN_FOLLOWED, np.concatenate(followed, axis=1))
        self.write(module, step, TOKEN_RISING, stream.rising / stream.count)

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        """Inside, a GPU may round the factors of products to TF32 where training runs in 16 bits."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = before or self.risk.is_halved
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def _write_points(self, module: TrainingModule, step: int, points: np.ndarray) -> None:
        """Write them once: they are the same at every measured step, also after an interruption."""
        if TOKEN_POINTS not in self.record or not len(self.record[TOKEN_POINTS]):
            self.write(module, step, TOKEN_POINTS, points)
        elif not np.array_equal(followed := self.record[TOKEN_POINTS].values[0], points):
            raise DamagedError(
                f"{self.record.folder} was begun by another version of the program, which chose {len(followed)} tokens "
                f"to follow; now they are {len(points)} others"
            )


def _evenly(values: Sequence[int] | np.ndarray, count: int | None) -> list[int]:
    """``count`` of ``values``, evenly spaced; all if there are fewer."""
    if count is None or count >= len(values):
        return [int(value) for value in values]
    return [int(values[row]) for row in np.linspace(0, len(values) - 1, count).round().astype(int)]
