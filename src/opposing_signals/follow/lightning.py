"""Following a training under Lightning's Trainer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from opposing_signals.errors import InputError
from opposing_signals.follow.adapter import Adapter


class OpposingSignals(Adapter, Callback):
    """`Follower` as a Lightning callback: it follows any `LightningModule` unchanged. For its arguments see `Adapter`.

    Automatic or manual optimization with any number of optimizers, minibatches, mixed precision, accumulated gradients;
    one process, or several under ``strategy="ddp"``.
    A step lasts until an optimizer has stepped, over one or more batches.
    """

    @property
    def state_key(self) -> str:
        """One key per folder, so that several callbacks can follow one training."""
        return self._generate_state_key(folder=self.wanted_folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow what a given loader draws; a loader that the module makes exists only when training starts."""
        given = getattr(getattr(trainer.fit_loop, "_data_source", None), "instance", None)
        if isinstance(given, DataLoader):
            self.follower.drawn.watch(given)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the examples and begin the record, or cut it back to the checkpoint that training resumes from."""
        if trainer.world_size != 1 and not isinstance(trainer.strategy, DDPStrategy):
            raise InputError(
                f"OpposingSignals: {trainer.world_size} processes train under {type(trainer.strategy).__name__}: "
                'expected one process (devices=1), or strategy="ddp"'
            )
        loader, iterator = _loader(trainer)

        def to_device(batch: Any) -> Any:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

        steps = trainer.estimated_stepping_batches
        self.follower.expect(int(steps) if steps not in (-1, float("inf")) else None)
        self.follower.begin(
            pl_module,
            trainer.optimizers,
            step=trainer.global_step if len(trainer.optimizers) == 1 and pl_module.automatic_optimization else None,
            to_device=to_device,
            context=trainer.precision_plugin.forward_context,
            loader=loader,
            iterator=iterator,
            described={
                "batch": getattr(trainer.train_dataloader, "batch_size", None),
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "precision": str(trainer.precision),
            },
            hooks=False,
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that an index still refers to the same example."""
        if trainer.current_epoch:
            self.follower.check_order()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch begins."""
        self.follower.open(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The gradient is complete and not yet clipped."""
        self.follower.at_gradient(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the training step's own loss, without synchronizing with the device."""
        self.follower.add_loss(outputs.get("loss") if isinstance(outputs, dict) else outputs)
        self.follower.shut()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The record is complete."""
        self.follower.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured so far."""
        self.follower.close(None)

    def state_dict(self) -> dict[str, Any]:
        """See `Follower.state_dict`."""
        return self.follower.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Follower.load_state_dict`."""
        self.follower.load_state_dict(state_dict)


def _loader(trainer: Trainer) -> tuple[Any, Any]:
    """The training's loader, and its iterator, which Lightning makes before training begins."""
    combined: Any = trainer.fit_loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    if len(loaders) != 1:
        return None, None
    with suppress(AttributeError, IndexError, TypeError):  # other versions of Lightning differ
        return loaders[0], combined._iterator.iterators[0]
    return loaders[0], None
