"""The adapter for transformers' Trainer: the same record, and the same training."""

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from opposing_signals.follow.transformers import OpposingSignals
from opposing_signals.record import Record

SEQUENCES = [
    {"input_ids": row, "labels": row} for row in torch.randint(11, (40, 8), generator=torch.Generator().manual_seed(0))
]


def per_sample_loss(model, batch):
    logits, targets = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def trained(folder, *callbacks, accumulate=1):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "checkpoints"), max_steps=10, per_device_train_batch_size=4, use_cpu=True,
        gradient_accumulation_steps=accumulate, report_to=[], save_strategy="no", disable_tqdm=True, learning_rate=0.1,
        max_grad_norm=1e-3,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=SEQUENCES, callbacks=list(callbacks)).train()
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainers_batches_are_recorded_and_its_training_is_the_same(tmp_path, accumulate):
    signals = OpposingSignals(
        SEQUENCES, per_sample_loss, folder=tmp_path / "run", budget=None, every=1, consecutive=1, sharpness_every=5
    )
    alone, watched = trained(tmp_path, accumulate=accumulate), trained(tmp_path, signals, accumulate=accumulate)
    for one, other in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    record = Record(tmp_path / "run")
    assert record.is_complete
    assert record["sample_loss"].values.shape == (10, 40)
    assert record["batch_size"].values.tolist() == [4 * accumulate] * 10
    first = record["batch_index"].values[0]
    assert (first >= 0).all()
    # θ_0 without dropout's noise: the losses of the batch's rows at the first step are close to the tracking set's.
    np.testing.assert_allclose(record["batch_loss"].values[0], record["sample_loss"].values[0][first], rtol=0.3)
    np.testing.assert_allclose(record["train_loss"].values, record["batch_loss"].values.mean(1), rtol=1e-4)
    assert (record["batch_gradient_norm"].values > 1e-2).all()  # before it is clipped to a thousandth
