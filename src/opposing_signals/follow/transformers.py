"""Following a training under transformers' `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from opposing_signals.follow.follower import Follower
from opposing_signals.follow.per_sample import PerSampleLoss


class OpposingSignals(TrainerCallback):
    """`Follower` as a callback of transformers' `Trainer`.

    ``per_sample_loss`` gets the model and the batch as a dictionary, such as the data collator makes it. The batch's
    own losses come from the model's call in the training step.

    Args:
        train_dataset: That the trainer gets, without random transforms.
        per_sample_loss: (model, batch) ↦ ``[n]``, one loss an example.
        folder: Where the record is written.
        settings: Further fields of `Follower`; ``collate`` must be the trainer's ``data_collator`` if it has one that
            is not the default.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(
        self,
        train_dataset: Any,
        per_sample_loss: PerSampleLoss,
        *,
        folder: str | Path = "outputs/own_model",
        **settings: Any,
    ) -> None:
        self.follower = Follower(train_dataset, per_sample_loss, folder=folder, **settings)
        self._steps = settings.get("steps")

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Read the examples and begin the record."""
        self.follower.expect(state.max_steps if self._steps is None and state.max_steps > 0 else self._steps)
        self.follower.begin(
            named["model"],
            [named["optimizer"]],
            step=state.global_step,
            loader=named["train_dataloader"],
            described={
                "seed": args.seed,
                "batch": args.per_device_train_batch_size,
                "accumulate_grad_batches": args.gradient_accumulation_steps,
                "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "32",
            },
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """See that an index still names the same example."""
        if state.global_step:
            self.follower.check_order()

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """A step begins."""
        self.follower.open()

    def on_substep_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """A batch whose gradient is accumulated is over; the next one follows at once."""
        self.follower.shut()
        self.follower.open()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """The step is over."""
        self.follower.shut()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """The record is complete."""
        self.follower.close()
