"""Pure signals passed through the network, step by step (figures 5 and 10 to 31)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from opposing_signals.curvature.normalization import Statistics, captured, frozen
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import Dataset
from opposing_signals.data.probes import probe_images
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.processes import is_first
from opposing_signals.record import Record
from opposing_signals.record.quantities import MEAN_FEATURE_NORM, PROBE_FEATURE_NORM, PROBE_IMAGE, PROBE_LOGITS
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count


class BlockProbe(Instrument):
    """Passes inputs that are not training examples through θ_t and records the outputs.

    * ``probe_logits`` ``[P, C]``; under cross-entropy the class probabilities are their softmax.
    * ``probe_feature_norm`` ``[P]``: Euclidean norm of each probe's penultimate feature, the input of the last linear
      layer.
    * ``mean_feature_norm``: its mean over the step's batch, which is the training set in full-batch training.
    * ``probe_image`` ``[P, H, W, 3]`` uint8: the pictures, at step 0 only.

    Batch norm: a probe is normalized by the statistics of the first chunk of the step's own pass over its batch, held
    constant. It is treated like one more image of that chunk, except that it does not change the statistics. Training
    is bit-identical with and without probes, and an image of that chunk would get exactly its training output.

    Statistics and mean norm are read by hooks inside the training pass; the probes are passed between that and the
    optimizer's update. Hooks cannot see into a compiled or recorded training pass (``risk.compile_training``,
    ``risk.cuda_graphs``). There each measurement takes a second, plain forward pass over the batch, which costs about a
    third of a step and leaves the training pass and its rounding unchanged.

    Args:
        probes: Names or image files, see `probe_images`.

    Raises:
        InputError: ``probes`` is not a list, or empty; or the model's last layer with parameters is not linear, so that
            "penultimate feature" has no meaning.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        probes: Sequence[str] = ("sky", "red", "green", "white", "black", "grass"),
        every: Count = 1,
        consecutive: Count = 1,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        if not probes or isinstance(probes, str) or not isinstance(probes, Sequence):
            raise InputError(f"BlockProbe: probes={probes}: expected a list of one or more, such as [sky]")
        self.probes = list(probes)
        self._head = _last_linear(risk.model)
        self._seen: tuple[Statistics, list[Tensor]] = [], []

    def prepare(self, dataset: Dataset) -> None:
        """Make the probes, in the size and normalization of the training images."""
        self._images = probe_images(self.probes, dataset)
        assert dataset.normalize is not None
        self._inputs = dataset.normalize(self._images)

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Observe the training pass, if hooks can see into it."""
        if not self.risk.is_one_graph:
            module.observe(self._observe())

    @contextmanager
    def _observe(self) -> Iterator[None]:
        """Capture the batch-norm statistics of the first chunk and the feature norms of every chunk."""
        with captured(self.risk.model) as statistics, self._feature_norms() as norms:
            yield
        self._seen = statistics, norms

    @contextmanager
    def _feature_norms(self) -> Iterator[list[Tensor]]:
        """``[n]`` norms of the penultimate features of each chunk evaluated inside."""
        norms: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(
            lambda _, inputs: norms.append(inputs[0].detach().flatten(1).double().norm(dim=1))
        )
        try:
            yield norms
        finally:
            hook.remove()

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Evaluate the probes with the captured statistics."""
        if self.risk.is_one_graph:
            with self._observe():
                self.risk.sample_losses(module.batch)
        statistics, norms = self._seen
        with self.risk.split(module.batch):
            chunks = len(self.risk.parts(module.batch))  # a pass of its own for curvature may have followed
            mean_norm = self.risk.assembled(norms[:chunks], module.batch).mean().item()
        if not is_first():  # the first process has the first chunk
            return
        with frozen(self.risk.model, statistics), self._feature_norms() as probe_norms:
            logits = self.risk.outputs(self._inputs)
        self.write(module, step, PROBE_LOGITS, logits.float().cpu().numpy())
        self.write(module, step, PROBE_FEATURE_NORM, torch.cat(probe_norms).float().cpu().numpy())
        self.write(module, step, MEAN_FEATURE_NORM, mean_norm)
        if step == 0:
            self.write(module, step, PROBE_IMAGE, self._images)


def _last_linear(model: nn.Module) -> nn.Linear:
    """The last layer with parameters of its own, in the order in which the model registers them."""
    name, last = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ][-1]
    if not isinstance(last, nn.Linear):
        raise InputError(
            f"BlockProbe: the model's last layer with parameters is {name!r}, {type(last).__name__}: expected "
            "torch.nn.Linear, whose input is the penultimate feature; leave block_probe out of instruments"
        )
    return last
