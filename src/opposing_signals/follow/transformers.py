"""Following a training under transformers' `Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from opposing_signals.follow.adapter import Adapter


class OpposingSignals(Adapter, TrainerCallback):
    """`Follower` as a callback of transformers' `Trainer`. For its arguments see `Adapter`.

    ``per_sample_loss`` gets the model and the batch as a dictionary, as the data collator makes it; ``collate`` must be
    the trainer's ``data_collator`` if that is not the default. The batch's own losses come from the model's call in the
    training step.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Read the examples and begin the record."""
        self.follower.expect(state.max_steps if state.max_steps > 0 else None)
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
        """Check that an index still refers to the same example."""
        if state.global_step:
            self.follower.check_order()

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """A step begins."""
        self.follower.open()

    def on_substep_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """A micro-batch of an accumulated gradient is over; the next one follows at once."""
        self.follower.shut()
        self.follower.open()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """The step is over."""
        self.follower.shut()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """The record is complete."""
        self.follower.close()
