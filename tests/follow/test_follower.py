"""The follower in a plain loop: what it writes for each batch, and that it leaves training unchanged."""

import dataclasses
import logging
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from opposing_signals import Follower
from opposing_signals.errors import InputError
from opposing_signals.follow import budget as budget_module
from opposing_signals.follow.budget import CHANGES, GRACE, Budget
from opposing_signals.follow.explanation import explain
from opposing_signals.follow.jumps import Jumps
from opposing_signals.follow.step import BUFFERED, SECONDS
from opposing_signals.follow.tracking_set import fingerprint
from opposing_signals.record import Record

EXAMPLES = 60


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(EXAMPLES, 6, generator=generator), torch.arange(EXAMPLES) % 3)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def per_sample_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def watching(folder, dataset=None, loss=per_sample_loss, **settings):
    return Follower(
        data() if dataset is None else dataset, loss, folder=folder,
        **{"every": 1, "consecutive": 1, "budget": None, **settings},
    )  # fmt: skip


def trained(follower=None, epochs=2, model=None, batch_size=8, workers=0, clip=None, seen=None, accumulate=1):
    """A plain loop, with or without a follower; ``seen`` gets the losses and examples of each batch."""
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    torch.manual_seed(2)
    loader = DataLoader(data(), batch_size=batch_size, shuffle=True, num_workers=workers)
    number = 0
    for _ in range(epochs):
        for x, y in loader if follower is None else follower.batches(loader):
            number += 1

            def step(x=x, y=y, number=number):
                losses = F.cross_entropy(model(x), y, reduction="none")
                if seen is not None:
                    seen.append((losses.detach().clone(), x))
                losses.mean().backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()

            if follower is None:
                step()
            else:
                with follower.step(model, optimizer, batch=(x, y)):
                    step()
    if follower is not None:
        follower.close()
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batchs_rows_have_the_training_forwards_losses_and_their_indices(tmp_path, workers):
    seen, (x, _) = [], data()[:]
    trained(watching(tmp_path / "run"), workers=workers, seen=seen)
    record = Record(tmp_path / "run")
    assert record.is_complete
    assert record["batch_loss"].steps.tolist() == list(range(16))
    assert record["batch_size"].values.tolist() == [8, 8, 8, 8, 8, 8, 8, 4] * 2
    for losses, index, mean, (expected, inputs) in zip(
        *(record[name].values for name in ("batch_loss", "batch_index", "train_loss")), seen, strict=True
    ):
        np.testing.assert_array_equal(losses[: len(expected)], expected)  # including dropout's masks
        assert torch.equal(x[torch.from_numpy(index[: len(expected)].copy())], inputs)
        assert np.isnan(losses[len(expected) :]).all()
        assert (index[len(expected) :] == -1).all()
        assert mean == pytest.approx(float(expected.mean()), rel=1e-5)


def test_the_gradients_norm_is_that_before_clipping(tmp_path):
    for clip in (None, 1e-3):
        trained(watching(tmp_path / str(clip)), clip=clip, epochs=1)
    free, clipped = (Record(tmp_path / str(clip))["batch_gradient_norm"].values for clip in (None, 1e-3))
    assert clipped[0] == pytest.approx(free[0], rel=1e-5)
    assert (clipped > 0.05).all()


def test_accumulated_batches_are_one_step(tmp_path):
    trained(watching(tmp_path / "run"), accumulate=4)
    record = Record(tmp_path / "run")
    assert record["batch_size"].values.tolist() == [32, 28] * 2
    assert len(record["sample_loss"]) == 4
    assert sorted(record["batch_index"].values[:2][record["batch_index"].values[:2] >= 0]) == list(range(EXAMPLES))


def test_a_model_that_gets_inputs_and_targets_needs_no_batch(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x, y):
            logits = self.layers(x)
            return logits, F.cross_entropy(logits, y)

    model, (x, y) = Both(), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(
        tmp_path / "run", loss=lambda m, b: F.cross_entropy(m(*b)[0], b[1], reduction="none"), dataset=data()
    )
    for step in range(5):
        rows = torch.arange(10) + 10 * step
        with follower.step(model, optimizer, batch_indices=rows):
            _, loss = model(x[rows], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    follower.close()
    record = Record(tmp_path / "run")
    assert record["batch_index"].values.tolist() == (np.arange(50).reshape(5, 10)).tolist()
    np.testing.assert_allclose(record["batch_loss"].values.mean(1), record["train_loss"].values, rtol=1e-5)


def test_losses_that_the_loop_has_are_taken_as_they_are(tmp_path):
    model, (x, y) = network(), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run")
    expected = []
    for _ in range(4):
        with follower.step(model, optimizer, batch=(x[:6], y[:6])) as step:
            losses = F.cross_entropy(model(x[:6]) / 2, y[:6], reduction="none")
            step.record(losses, range(6))
            step.loss = 7.0
            losses.sum().backward()
            optimizer.step()
        expected.append(losses.detach())
    follower.close()
    record = Record(tmp_path / "run")
    np.testing.assert_array_equal(record["batch_loss"].values, torch.stack(expected))
    assert record["batch_index"].values.tolist() == [list(range(6))] * 4
    assert record["train_loss"].values.tolist() == [7.0] * 4


def test_a_follower_that_was_closed_follows_another_training(tmp_path):
    follower = watching(tmp_path / "run")
    for _ in range(2):
        trained(follower, epochs=1)
    one, other = Record(tmp_path / "run"), Record(tmp_path / "run-2")
    assert one.is_complete
    assert other.is_complete
    np.testing.assert_array_equal(one["sample_loss"].values, other["sample_loss"].values)


def test_an_optimizer_may_step_behind_the_block(tmp_path):
    model, (x, y) = network(), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run")
    for step in range(4):
        with follower.step(model, optimizer, batch=(x, y), batch_indices=range(step, step + EXAMPLES)):
            per_sample_loss(model, (x, y)).mean().backward()
        optimizer.step()
    follower.close()
    record = Record(tmp_path / "run")
    assert record["batch_index"].values[:, 0].tolist() == [0, 1, 2, 3]
    assert len(record["batch_gradient_norm"]) == len(record["sample_loss"]) == 4


def test_an_optimizer_that_never_steps_ends_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr("opposing_signals.follow.watch._MOST_BATCHES", 5)
    model, (x, y) = network(), data()[:]
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run")
    for _ in range(8):
        with follower.step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch=(x, y)):
            per_sample_loss(model, (x, y)).mean().backward()
            other.step()
    follower.close()
    assert "no optimizer stepped in 5 batches" in Record(tmp_path / "run").state


def test_a_subsets_places_are_translated(tmp_path):
    full, model = data(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run", dataset=full)
    for x, y in follower.batches(DataLoader(Subset(full, [50, 3, 17]), batch_size=3)):
        with follower.step(model, optimizer, batch=(x, y)):
            per_sample_loss(model, (x, y)).mean().backward()
            optimizer.step()
    follower.close()
    assert Record(tmp_path / "run")["batch_index"].values.tolist() == [[50, 3, 17]]


def test_a_training_step_with_other_inputs_has_no_rows_and_says_so(tmp_path):
    model, (x, y) = network(), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run")
    for _ in range(30):
        with follower.step(model, optimizer, batch=(x, y)):
            F.cross_entropy(model(x + torch.randn_like(x)), y).backward()
            optimizer.step()
    follower.close()
    record = Record(tmp_path / "run")
    assert "batch_loss" not in record
    assert len(record["batch_gradient_norm"]) == 30
    assert "other inputs" in record.provenance["batch_rows"]
    assert "batch rows: not recorded" in str(explain(tmp_path / "run"))


@pytest.mark.parametrize("how", ["in place", "around"])
def test_compiled_models_train_on_and_their_rows_are_known(tmp_path, how):
    def make():
        model = network()
        if how == "around":
            return torch.compile(model, backend="aot_eager")
        model.compile(backend="aot_eager")
        return model

    alone = trained(model=make())
    watched = trained(watching(tmp_path / "run", sharpness_every=4), model=make())
    for one, other in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(Record(tmp_path / "run")["batch_loss"]) == 16


def test_a_step_within_autocast_keeps_its_gradients(tmp_path):
    def run(follower):
        model, (x, y) = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), data()[:]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            with (
                torch.autocast("cpu", torch.bfloat16),
                follower.step(model, optimizer, batch=(x, y)) if follower else nullcontext(),
            ):
                optimizer.zero_grad()
                loss = per_sample_loss(model, (x, y)).mean() + 0.01 * (model[2].weight @ model[0].weight).sum()
                loss.backward()
                optimizer.step()
        return list(model.parameters())

    torch.manual_seed(0)
    alone = run(None)
    follower = watching(
        tmp_path / "run", sharpness_every=2,
        loss=lambda m, b: per_sample_loss(m, b) + 0 * (m[2].weight @ m[0].weight).sum(),
    )  # fmt: skip
    torch.manual_seed(0)
    watched = run(follower)
    follower.close()
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    assert len(Record(tmp_path / "run")["sharpness"]) == 2


def test_two_followers_watch_one_loop_and_leave_the_model_as_it_was(tmp_path):
    model, (x, y) = network(), data()[:]
    before = set(vars(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    followers = [watching(tmp_path / name / "run", track=5) for name in "ab"]
    for _ in range(4):
        with followers[0].step(model, optimizer, batch=(x, y)), followers[1].step(model, optimizer, batch=(x, y)):
            per_sample_loss(model, (x, y)).mean().backward()
            optimizer.step()
    for follower in followers:
        follower.close()
    one, other = (Record(follower.folder) for follower in followers)
    assert one["batch_loss"].values.tobytes() == other["batch_loss"].values.tobytes()
    assert len(one["batch_gradient_norm"]) == len(other["batch_gradient_norm"]) == 4
    assert set(vars(model)) == before


def test_a_resumed_loop_has_the_record_of_an_uninterrupted_one(tmp_path):
    def run(folder, first, last, state=None):
        torch.manual_seed(5)
        model, (x, y) = nn.Linear(6, 3), data()[:]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        follower = watching(folder, every=3, consecutive=2, sharpness_every=2)
        if state:
            model.load_state_dict(state["model"])
            follower.load_state_dict(state["follower"])
        for step in range(first, last):
            rows = torch.arange(10) + step
            with follower.step(model, optimizer, batch=(x[rows], y[rows]), batch_indices=rows):
                optimizer.zero_grad()
                per_sample_loss(model, (x[rows], y[rows])).mean().backward()
                optimizer.step()
            if step == 10:
                model_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                state = {"model": model_state, "follower": follower.state_dict()}
        follower.close()
        return state

    run(tmp_path / "whole", 0, 20)
    run(tmp_path / "cut", 11, 20, run(tmp_path / "cut", 0, 15))
    whole, cut = Record(tmp_path / "whole"), Record(tmp_path / "cut")
    assert set(whole) == set(cut)
    for quantity in whole:
        np.testing.assert_array_equal(whole[quantity].steps, cut[quantity].steps, quantity)
        np.testing.assert_array_equal(whole[quantity].values, cut[quantity].values, quantity)


@pytest.mark.parametrize(("seconds", "rows"), [(0.0, BUFFERED), (0.1, 210)])
def test_a_process_that_is_killed_has_written_all_but_the_last_steps(tmp_path, monkeypatch, seconds, rows):
    """A second reader of the files sees what a killed process leaves."""
    clock = iter(np.arange(1000) * seconds)
    monkeypatch.setattr("opposing_signals.follow.step.time.monotonic", lambda: next(clock))
    model, (x, y) = nn.Linear(6, 3), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run", every=10**6)
    for _ in range(210):
        with follower.step(model, optimizer, batch=(x, y)):
            per_sample_loss(model, (x, y)).mean().backward()
            optimizer.step()
    written = Record(tmp_path / "run").rows
    follower.close()
    assert 0 <= rows - written["batch_loss"] <= (SECONDS / seconds + 1 if seconds else 0)
    assert {written[name] for name in written if name != "sample_loss"} == {written["batch_loss"]}


@dataclasses.dataclass
class Example:
    x: torch.Tensor
    y: int


class Graph:
    """A user-defined object with a method that moves it to a device."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Graph(self.x.to(device), self.y.to(device))


def stacked(examples):
    return Graph(torch.stack([one.x for one in examples]), torch.tensor([int(one.y) for one in examples]))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ({"x": x, "y": y, "id": 500 + i} for i, (x, y) in enumerate(zip(*data()[:], strict=True)))


X, Y = data()[:]


@pytest.mark.parametrize("batched", [True, False])
def test_rows_of_a_stream_have_numbers_where_ids_takes_a_batch_too(tmp_path, batched):
    ids = (lambda example: example["id"]) if batched else (lambda example: int(example["id"]))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(
        tmp_path / "run", Stream(), lambda m, b: per_sample_loss(m, (b["x"], b["y"])), track=20, ids=ids
    )
    for batch in follower.batches(DataLoader(Stream(), batch_size=20)):
        with follower.step(model, optimizer, batch=batch):
            per_sample_loss(model, (batch["x"], batch["y"])).mean().backward()
            optimizer.step()
    follower.close()
    expected = 500 + np.arange(EXAMPLES).reshape(3, 20) if batched else np.full((3, 20), -1)
    np.testing.assert_array_equal(Record(tmp_path / "run")["batch_index"].values, expected)
    assert ("without indices" in str(explain(tmp_path / "run"))) != batched


@pytest.mark.parametrize(
    ("dataset", "settings", "loss"),
    [
        ([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], {}, lambda m, b: per_sample_loss(m, (b["x"], b["y"]))),
        ([Example(x, int(y)) for x, y in zip(X, Y, strict=True)], {"collate": stacked},
         lambda m, b: per_sample_loss(m, (b.x, b.y))),
        ([Graph(x, y) for x, y in zip(X, Y, strict=True)], {"collate": stacked},
         lambda m, b: per_sample_loss(m, (b.x, b.y))),
        (Stream(), {"ids": lambda example: example["id"]}, lambda m, b: per_sample_loss(m, (b["x"], b["y"]))),
        ([(x.to_sparse(), int(y)) for x, y in zip(X, Y, strict=True)],
         {"collate": lambda e: (torch.stack([x for x, _ in e]), torch.tensor([y for _, y in e]))},
         lambda m, b: per_sample_loss(m, (b[0].to_dense(), b[1]))),
        ([(x, y) for x, y in zip(X, Y, strict=True)], {"collate": lambda e: [{"x": x, "y": y} for x, y in e]},
         lambda m, b: per_sample_loss(m, (torch.stack([e["x"] for e in b]), torch.stack([e["y"] for e in b])))),
    ],
    ids=["dictionaries", "dataclasses", "objects", "a stream with ids", "sparse tensors", "lists of dictionaries"],
)  # fmt: skip
def test_examples_of_any_kind_are_followed(tmp_path, dataset, settings, loss):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = watching(tmp_path / "run", dataset=dataset, loss=loss, track=20, **settings)
    expected = []
    for _ in range(3):
        index = follower.examples.indices
        with follower.step(model, optimizer, batch=None):
            index = follower.examples.indices - (500 if isinstance(dataset, Stream) else 0)
            model.eval()
            with torch.no_grad():
                expected.append(per_sample_loss(model, (X[index], Y[index])))
            model.train()
            per_sample_loss(model, (X, Y)).mean().backward()
            optimizer.step()
    follower.close()
    np.testing.assert_allclose(Record(tmp_path / "run")["sample_loss"].values, torch.stack(expected), rtol=1e-5)


def test_fingerprints_see_inside_objects_or_say_that_they_cannot():
    def prints(value):
        return fingerprint([Example(torch.tensor([value]), 1), Graph(torch.tensor([value]).to_sparse(), {"a": value})])

    assert prints(1.0) == prints(1.0) != prints(2.0)
    opaque = set()
    fingerprint((object(), 3), opaque)
    assert opaque == {"object"}


def test_padded_sequences_pass_and_normalization_by_the_batchs_sum_does_not(tmp_path):
    sequences = [(torch.arange(1, n + 1) % 7, n) for n in (2, 5, 3, 4, 6, 2, 3, 5)]

    def collate(examples):
        return nn.utils.rnn.pad_sequence([tokens for tokens, _ in examples], batch_first=True)

    def masked(model, tokens, by_batch):
        mask = (tokens[:, 1:] > 0).float()
        losses = F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none") * mask
        return losses.sum(1) / (mask.sum() if by_batch else mask.sum(1))

    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for by_batch in (False, True):
        follower = watching(
            tmp_path / str(by_batch), sequences, loss=lambda m, b, by=by_batch: masked(m, b, by), collate=collate
        )
        if by_batch:
            with pytest.raises(InputError, match="does not depend on the other examples"):
                follower.begin(model, [optimizer])
            assert not (tmp_path / "True" / "configuration.json").exists()
        else:
            follower.begin(model, [optimizer])
            follower.close()


def test_the_record_of_a_run_with_a_bad_row_names_it(tmp_path):
    model, (x, y) = nn.Linear(6, 3), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    broken = x.clone()
    broken[33] = float("nan")
    follower = watching(tmp_path / "run", track=list(range(10)))
    for step in range(12):
        rows = (torch.arange(5) * 7 + 5 * step) % EXAMPLES
        with follower.step(model, optimizer, batch=(broken[rows], y[rows]), batch_indices=rows):
            optimizer.zero_grad()
            per_sample_loss(model, (broken[rows], y[rows])).mean().backward()
            optimizer.step()
    follower.close()
    told = explain(tmp_path / "run")
    assert told.findings["divergence"]["row"] == 33
    assert Record(tmp_path / "run").state.startswith("stopped: the loss of train_dataset[0] is not finite")


@pytest.mark.parametrize(("broken", "said"), [("model", "model is a NoneType"), ("folder", "is a file")])
def test_what_is_no_model_and_what_is_no_folder_is_refused(tmp_path, broken, said):
    if broken == "folder":
        (tmp_path / "run").touch()
    model = network()
    follower = watching(tmp_path / "run")
    with pytest.raises(InputError, match=said):
        follower.begin(None if broken == "model" else model, [torch.optim.SGD(model.parameters(), lr=0.1)])


def test_what_fails_in_a_measurement_ends_the_record_and_not_the_loop(tmp_path, caplog):
    calls = []

    def failing(model, batch):
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError("out of luck\nreally")
        return per_sample_loss(model, batch)

    with caplog.at_level(logging.WARNING):
        model = trained(watching(tmp_path / "run", loss=failing))
    record = Record(tmp_path / "run")
    for one, other in zip(model.parameters(), trained().parameters(), strict=True):
        assert torch.equal(one, other)
    assert record.state.startswith("stopped: measuring failed at step ")
    assert record.state.endswith("out of luck")
    assert sum("out of luck" in message for message in caplog.messages) == 1


# -- the budget -------------------------------------------------------------------------------------------------------


def planned(steps, seconds, each, fixed=0.0, available=2000, share=0.05):
    budget = Budget(share, steps)
    budget._taken.extend([seconds] * 5)
    count = budget.examples(0.0, fixed, each, available, 4, 0)
    return count, count * each * CHANGES * 4 / 3, budget


@pytest.mark.parametrize("steps", [140, 1000, 20000])
@pytest.mark.parametrize("each", [1e-6, 1e-4, 1e-2])
def test_the_tracking_set_fits_the_budget(steps, each):
    count, wanted, budget = planned(steps, 0.01, each)
    assert 16 <= count <= 2000
    fits = wanted <= budget.allowance(0) * 1.01
    assert fits or count == 16
    if count > 128:
        assert budget.grace == 0
    assert budget.grace <= GRACE


def test_a_short_training_has_fifty_changes(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: clock[0])

    def slow_loss(model, batch):
        clock[0] += 0.002
        return per_sample_loss(model, batch)

    model, (x, y) = nn.Linear(6, 3), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    follower = Follower(data(), slow_loss, folder=tmp_path / "run", steps=140)
    for step in range(140):
        rows = torch.arange(8) + step % 50
        with follower.step(model, optimizer, batch=(x[rows], y[rows]), batch_indices=rows):
            clock[0] += 0.01
            optimizer.zero_grad()
            per_sample_loss(model, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    follower.close()
    told = explain(tmp_path / "run")
    assert told.findings["changes"] >= 50
    assert str(told).startswith(f"run: measured {told.findings['measured']} of 140 steps")


def test_half_of_what_is_drawn_are_members_of_the_users_groups(tmp_path):
    settings = {"groups": {"a": [3, 5], "b": range(40, 60)}, "track": 20}
    drawn = [watching(tmp_path, **settings, seed=seed).examples.indices.tolist() for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    for indices in drawn:
        assert len(set(indices)) == 20
        assert len({3, 5, *range(40, 60)} & set(indices)) >= 10


def test_what_is_done_within_steps_counts_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: clock[0])

    def pass_(seconds):
        clock[0] += seconds

    budget = Budget(0.05, 100)
    budget.begin()

    def watched():
        pass_(0.01)
        with budget.measuring("writing"):
            pass_(0.02)
        budget.watching(lambda: pass_(0.03))

    for _ in range(10):
        budget.count_step()
        budget.watching(watched)
        pass_(1.0)
    assert (budget.spent, budget.watched) == pytest.approx((0.6, 0.4))
    assert budget.step_seconds == pytest.approx(1.0)
    # Observing would take 4 of the 5 s that are allowed: a quarter of the 5 s is kept for measuring.
    assert budget.allowance(10) == pytest.approx(0.05 * 100 / 4 + 10 * 0.04)


@pytest.mark.parametrize(
    ("each", "shares", "counts"),
    [(1e-5, (0.015, 0.015), (129, 2000)), (1.5e-4, (0.03, 0.036), (128, 140)), (1e-3, (0.05, 0.05), (16, 127))],
)
def test_a_modest_share_is_taken_where_it_suffices(each, shares, counts):
    count, _, budget = planned(1000, 0.05, each)
    assert shares[0] <= budget.share <= shares[1]
    assert counts[0] <= count <= counts[1]


def test_a_jump_is_told_from_noise():
    jumps, generator = Jumps(), np.random.default_rng(0)
    assert not any(jumps.add("loss", 1 + 0.1 * value) for value in generator.random(500))
    assert jumps.add("loss", 2.0)
    assert not jumps.add("loss", 1.05)
    assert jumps.add("loss", float("inf"))


def test_a_jump_of_the_train_loss_is_measured_at_once(tmp_path):
    model, (x, y) = nn.Linear(6, 3), data()[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    follower = Follower(data(), per_sample_loss, folder=tmp_path / "run", steps=400, track=30, every=1000)
    follower.budget.grace = 1e9
    for step in range(120):
        with follower.step(model, optimizer, batch=(x, y)):
            optimizer.zero_grad()
            ((100 if step == 77 else 1) * per_sample_loss(model, (x, y))).mean().backward()
            optimizer.step()
    follower.close()
    assert Record(tmp_path / "run")["sample_loss"].steps.tolist()[4:8] == [78, 79, 80, 81]
