# ruff: noqa: ARG002  (the signatures of frameworks)
"""Trainings of many kinds in Lightning, Fabric and transformers, with and without a follower.

They end with the same bits, and the record gives the reason for its end.

A row of the table is a training and the expected content of its record; see `check`.
"""

from contextlib import suppress
from functools import partial

import pytest
import torch
from following import BATCH, EXAMPLES, STEPS, Data, check, loop, losses_of, network, sgd
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning.fabric import Fabric  # isort: skip  (last: see docs/own_model.md, "Imports")
from lightning.pytorch import LightningModule, Trainer  # isort: skip
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging  # isort: skip


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        loss = losses_of(self, batch).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid", losses_of(self, batch).mean())

    def configure_optimizers(self):
        return sgd(self)


class Skips(Module):
    """Has no loss for one batch in three."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class Raises(Module):
    error = RuntimeError("bug")

    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            raise self.error
        return super().training_step(batch, batch_idx)


class Interrupted(Raises):
    error = KeyboardInterrupt()


class Manual(Module):
    """Accumulates and steps manually, with a closure."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        def again():
            optimizer.zero_grad()
            loss = losses_of(self, batch).mean()
            self.manual_backward(loss)
            return loss

        optimizer = self.optimizers()
        again() if batch_idx % 2 == 0 else optimizer.step(closure=again)


class Toggled(Module):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(losses_of(self, batch).mean())
            self.clip_gradients(optimizer, 0.1)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [sgd(self.layers[0]), torch.optim.Adam(self.layers[4].parameters(), 0.01)]


class OfLbfgs(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=2)


class Leaves(Module):
    """Ends each epoch after three batches."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class OfTwoLoaders(Module):
    def training_step(self, batch, batch_idx):
        return losses_of(self, batch["one"]).mean() + losses_of(self, batch["other"]).mean()

    def train_dataloader(self):
        return {name: DataLoader(Data(), size, shuffle=True) for name, size in (("one", 6), ("other", 4))}


def fitted(run, kind=Module, loader=True, more=lambda: [], raises=(), times=1, loss=None, **settings):
    module = kind()
    trainer = Trainer(
        callbacks=[*run.callbacks(loss=loss), *more()], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **{"max_epochs": 2, **settings},
    )  # fmt: skip
    loaders = [DataLoader(Data(), BATCH, shuffle=True), DataLoader(Data(), BATCH)] if loader else []
    with suppress(*raises):
        for number in range(times):
            if number:
                trainer.fit_loop.max_epochs = 2 * (number + 1)
            trainer.fit(module, *loaders)
    return module


def in_fabric(run, precision="32-true", accumulate=1):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = network()
    model, optimizer = fabric.setup(model, sgd(model))
    count = iter(range(100))

    def step(model, optimizer, batch):
        steps = next(count) % accumulate == accumulate - 1
        with fabric.no_backward_sync(model, enabled=not steps):
            fabric.backward(losses_of(model, batch).mean())
        if steps:
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            optimizer.zero_grad()

    loop(
        run, model, step, optimizer=optimizer, loader=fabric.setup_dataloaders(DataLoader(Data(), BATCH, shuffle=True))
    )
    return model


def in_transformers(run, stop=False, **settings):
    transformers = pytest.importorskip("transformers")
    from opposing_signals.follow.transformers import OpposingSignals as Signals

    class Rows(Dataset):
        """Sequences of different lengths."""

        def __len__(self):
            return EXAMPLES

        def __getitem__(self, i):
            return {"input_ids": [(7 * i + j) % 11 for j in range(3 + i % 4)]}

    def collate(rows):
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True, 0)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], True, 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    def losses(model, batch):
        logits, targets = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return each.sum(1) / (targets != -100).sum(1)

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **named):
            control.should_training_stop = state.global_step == 4

    followed = [] if run.folder is None else [
        Signals(Rows(), losses, folder=run.folder / "run", budget=None, every=1, consecutive=1, collate=collate)
    ]  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir="unused", per_device_train_batch_size=BATCH, num_train_epochs=2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, learning_rate=0.05, **settings,
    )  # fmt: skip
    transformers.Trainer(
        model, arguments, train_dataset=Rows(), eval_dataset=Rows(), data_collator=collate,
        callbacks=followed + [Stop()] * stop,
    ).train()  # fmt: skip
    return model


FRAMEWORKS = {
    "Lightning, validation": (fitted, 2 * STEPS),
    "Lightning, no loss for a batch": (partial(fitted, kind=Skips), 2 * (STEPS - 1)),
    "Lightning, exception": (partial(fitted, kind=Raises, raises=(RuntimeError,)), 2, "running"),
    "Lightning, KeyboardInterrupt": (
        partial(fitted, kind=Interrupted, raises=(KeyboardInterrupt, SystemExit)), 2, "running"),
    "Lightning, by hand": (partial(fitted, kind=Manual), STEPS),
    "Lightning, toggled optimizers": (partial(fitted, kind=Toggled), 2 * STEPS),
    "Lightning, LBFGS": (partial(fitted, kind=OfLbfgs), 2 * STEPS),
    "Lightning, epochs cut short": (partial(fitted, kind=Leaves), 6),
    "Lightning, early stop": (
        partial(fitted, more=lambda: [EarlyStopping("valid", min_delta=10.0, patience=1)], max_epochs=5), 2 * STEPS),
    "Lightning, averaged weights": (
        partial(fitted, more=lambda: [StochasticWeightAveraging(0.1, swa_epoch_start=1)], max_epochs=3), 3 * STEPS + 1),
    "Lightning, two loaders": (
        partial(fitted, kind=OfTwoLoaders, loader=False, max_steps=5), None),
    "Lightning, fit twice": (partial(fitted, times=2), 4 * STEPS),
    "Lightning, bfloat16 and accumulation": (
        partial(fitted, precision="bf16-mixed", accumulate_grad_batches=3, gradient_clip_val=0.1), 4),
    "Fabric": (in_fabric, STEPS),
    "Fabric, bfloat16 and accumulation": (partial(in_fabric, precision="bf16-mixed", accumulate=2), STEPS // 2),
    "transformers, padding and evaluation": (partial(in_transformers, eval_strategy="steps", eval_steps=3), 2 * STEPS),
    "transformers, accumulation": (partial(in_transformers, gradient_accumulation_steps=3), 4),
    "transformers, stopped": (partial(in_transformers, stop=True), 4),
    "transformers, checkpointing, smoothing": (
        partial(in_transformers, gradient_checkpointing=True, label_smoothing_factor=0.1), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", FRAMEWORKS)
def test_a_training_ends_with_the_same_bits_and_its_record_with_a_reason(tmp_path, kind):
    check(FRAMEWORKS[kind], tmp_path)
