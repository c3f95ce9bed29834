# ruff: noqa: ARG002  (the signatures of Lightning's hooks)
"""The callback on unmodified modules: what it writes, and that it leaves training unchanged."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from opposing_signals import OpposingSignals
from opposing_signals.errors import InputError
from opposing_signals.follow import budget as budget_module
from opposing_signals.follow.budget import Budget
from opposing_signals.follow.tracking_set import fingerprint
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory

EXAMPLES = 20


def data(dtype=torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(
        torch.randn(EXAMPLES, 6, generator=generator).to(dtype), torch.randint(3, (EXAMPLES,), generator=generator)
    )


class Module(LightningModule):
    """Dropout, batch norm, a schedule: everything that a measurement could disturb."""

    def __init__(self, dropout: float = 0.3, first: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            first or torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Dropout(dropout),
            torch.nn.Linear(8, 3),
        )  # fmt: skip
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.layers(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)]


def per_sample_loss(module, batch):
    x, y = batch
    return F.cross_entropy(module.layers(x), y, reduction="none")


class Keeper(Callback):
    """Keeps the weights before each step, for an independent check."""

    def __init__(self) -> None:
        self.states = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step not in self.states:
            self.states[trainer.global_step] = {k: v.clone() for k, v in pl_module.state_dict().items()}


def fitted(*callbacks, steps=8, module=None, dataset=None, ckpt_path=None, batch_size=7, **settings):
    torch.manual_seed(1)
    module = (module or Module)()
    trainer = Trainer(
        max_steps=steps, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    loader = DataLoader(data() if dataset is None else dataset, batch_size=batch_size, shuffle=True)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer, module


def watching(folder, dataset=None, loss=per_sample_loss, **settings):
    defaults = {"every": 1, "consecutive": 1, "budget": None, "batch_size": 6}
    return OpposingSignals(data() if dataset is None else dataset, loss, folder=folder, **{**defaults, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}], ids=str
)
def test_training_is_bit_identical_with_and_without_it(tmp_path, settings):
    _, alone = fitted(**settings)
    _, watched = fitted(watching(tmp_path / "run", sharpness_every=1), **settings)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    record = Record(tmp_path / "run")
    assert record["sample_loss"].steps.tolist() == list(range(8))
    assert record["train_loss"].steps.tolist() == list(range(8))
    assert len(record["sharpness"]) == 8
    assert record.is_complete


def test_mode_gradients_and_buffers_are_left_alone_within_accumulation(tmp_path):
    class Look(Callback):
        """Runs after the callback and sees what the step will see."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append(all(m.training for m in pl_module.modules()))
            gradients.append(
                None if pl_module.layers[0].weight.grad is None else pl_module.layers[0].weight.grad.clone()
            )

    seen = []
    for callbacks in ([], [watching(tmp_path / "run", sharpness_every=1)]):
        modes, gradients = [], []
        fitted(*callbacks, Look(), accumulate_grad_batches=2)
        assert all(modes)
        seen.append(gradients)
    assert any(gradient is not None for gradient in seen[0])
    for one, other in zip(*seen, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_it_writes_the_losses_before_each_step_in_evaluation_mode(tmp_path):
    keeper, chosen = Keeper(), [3, 11, 4, 19, 0]
    fitted(keeper, watching(tmp_path / "run", track=chosen, batch_size=2))
    record, (x, y) = Record(tmp_path / "run"), data()[:]
    fresh = Module().eval()
    for step in range(8):
        fresh.load_state_dict(keeper.states[step])
        expected = -F.log_softmax(fresh.layers(x), 1)[torch.arange(EXAMPLES), y][chosen]
        np.testing.assert_allclose(record["sample_loss"].at(step), expected.detach(), rtol=1e-5)
    assert record["learning_rate"].values.tolist() == pytest.approx([0.3] * 6 + [0.27] * 2)
    assert Trajectory(record).dataset.inputs[:, 0].tolist() == chosen
    names = [Trajectory(record).dataset.class_names[target] for target in Trajectory(record).dataset.targets]
    assert names == [str(int(label)) for label in y[chosen]]


def test_sharpness_is_the_top_eigenvalue_of_the_dense_hessian(tmp_path):
    keeper = Keeper()
    fitted(
        keeper, watching(tmp_path / "run", data(torch.float64), sharpness_every=1), steps=4,
        module=lambda: Module(dropout=0.0).double(),
        dataset=data(torch.float64), precision="64-true",
    )  # fmt: skip
    x, y = data(torch.float64)[:]
    fresh = Module(dropout=0.0).double().eval()
    for step in range(4):
        fresh.load_state_dict(keeper.states[step])
        parameters = dict(fresh.named_parameters())
        sizes = [p.numel() for p in parameters.values()]

        def risk(theta, fresh=fresh, parameters=parameters, sizes=sizes):
            pieces = theta.split(sizes)
            state = {k: v.view_as(p) for (k, p), v in zip(parameters.items(), pieces, strict=True)}
            hidden = F.linear(x, state["layers.0.weight"], state["layers.0.bias"])
            norm = fresh.layers[1]
            hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            hidden = torch.tanh(hidden * state["layers.1.weight"] + state["layers.1.bias"])
            outputs = F.linear(hidden, state["layers.4.weight"], state["layers.4.bias"])
            return F.cross_entropy(outputs, y)

        theta = torch.cat([p.detach().flatten() for p in parameters.values()])
        eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(risk, theta))
        residual = Record(tmp_path / "run")["sharpness_residual"].at(step)
        value = Record(tmp_path / "run")["sharpness"].at(step)
        quotient = Record(tmp_path / "run")["sharpness_quotient"].at(step)
        assert value == pytest.approx(float(eigenvalues[-1]), rel=0.1)
        assert (eigenvalues - quotient).abs().min() <= residual + 1e-12  # an eigenvalue lies within the residual


class SaveAt(Callback):
    def __init__(self, step, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_has_the_record_of_an_uninterrupted_one(tmp_path):
    settings = {"every": 3, "consecutive": 2, "sharpness_every": 2}
    steady = partial(Module, dropout=0.0)  # Lightning does not restore the random state
    fitted(watching(tmp_path / "whole", **settings), module=steady, steps=9, batch_size=EXAMPLES)
    path = tmp_path / "last.ckpt"
    fitted(watching(tmp_path / "cut", **settings), SaveAt(4, path), module=steady, steps=7, batch_size=EXAMPLES)
    assert Record(tmp_path / "cut")["sample_loss"].steps.tolist() == [0, 1, 3, 4, 6]
    fitted(watching(tmp_path / "cut", **settings), module=steady, steps=9, ckpt_path=path, batch_size=EXAMPLES)
    whole, cut = Record(tmp_path / "whole"), Record(tmp_path / "cut")
    assert set(whole) == set(cut) >= {"learning_rate", "sample_loss", "sharpness", "train_loss"}
    for quantity in whole:
        np.testing.assert_array_equal(whole[quantity].steps, cut[quantity].steps, quantity)
        one, other = (
            np.sort(run[quantity].values, -1) if "batch_" in quantity else run[quantity].values for run in (whole, cut)
        )  # Lightning shuffles anew
        np.testing.assert_allclose(one, other, rtol=1e-4, err_msg=quantity)
    with pytest.raises(InputError, match="other examples"):
        fitted(watching(tmp_path / "cut", TensorDataset(-data()[:][0], data()[:][1]), **settings), ckpt_path=path)


def test_the_stride_is_stretched_to_the_budget(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: clock[0])

    class Slow(Module):
        def training_step(self, batch, batch_idx):
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

    def slow_loss(module, batch):
        clock[0] += 0 if module.training else 0.5  # the training step reuses its outputs
        return per_sample_loss(module, batch)

    signals = watching(
        tmp_path / "run", loss=slow_loss, track=EXAMPLES, every=2, consecutive=2, budget=0.05, batch_size=EXAMPLES
    )
    fitted(signals, steps=400, module=Slow)
    steps = Record(tmp_path / "run")["sample_loss"].steps
    assert (np.diff(steps)[::2] == 1).all()  # two successive steps each
    assert steps[-1] > 330  # spread over the run
    assert 0.025 < signals.budget.overhead <= 0.05
    assert signals.budget.spent == pytest.approx(Record(tmp_path / "run").provenance["measuring_seconds"])


def test_a_budget_goes_on_where_it_was():
    one, other = Budget(0.1), Budget(0.1)
    one.begin()
    with one.measuring("losses"):
        pass
    one.end()
    other.load_state_dict(one.state_dict())
    assert (other.seconds, other.spent, other.costs) == (one.seconds, one.spent, one.costs)
    assert other.allows({"never measured": 5}, 0)
    other.costs["losses"] = 1e9
    assert not other.allows({"losses": 1}, 0)
    assert Budget(None).allows({"losses": 1}, 0)


@pytest.mark.parametrize(
    "settings", [{"dataset": "changing"}, {"show": lambda example: example[0].numpy()}, {"show": lambda _: 1 / 0},
                 {"groups": lambda _: 1 / 0}], ids=["order", "no picture", "show", "groups"],
)  # fmt: skip
def test_what_fails_behind_the_first_step_never_reaches_training(tmp_path, settings):
    settings = dict(settings)
    if "dataset" in settings:
        settings["dataset"] = Changing(EXAMPLES + 8 + 8)
    trainer, _ = fitted(watching(tmp_path / "run", **settings))
    assert trainer.global_step == 8
    state = Record(tmp_path / "run").state
    assert state == "complete" or ("another example than at the start" in state and "dataset" in settings)
    for quantity in ("sample_loss", "batch_loss", "train_loss"):
        assert len(Record(tmp_path / "run")[quantity]) >= 3


class Changing(Dataset):
    """An index gives another example in another epoch, as in a data set that shuffles itself."""

    def __init__(self, reads: int | None) -> None:
        self.reads = reads  # reads after which the order is reversed; None: new random examples each time

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        x, y = data()[index]
        if self.reads is None:
            return x + torch.randn(6), y
        self.reads -= 1
        return data()[index if self.reads >= 0 else EXAMPLES - 1 - index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(data())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"loss": lambda m, b: per_sample_loss(m, b).mean()}, ["shape []", "expected [8]", "reduction='none'"]),
        ({"loss": lambda m, b: per_sample_loss(m, b).mean().expand(len(b[1]))}, ["for each of 8", "mean", "'none'"]),
        ({"loss": lambda m, b: per_sample_loss(m, b)[:, None]}, ["shape [8, 1]", "flatten(1).mean(1)"]),
        ({"loss": lambda m, b: per_sample_loss(m, b).repeat(4)}, ["shape [32]", "view(8, -1)"]),
        ({"loss": lambda *_: 1.0}, ["returned a float", "expected [8]"]),
        ({"loss": lambda m, b: per_sample_loss(m, b["a"])}, ["TypeError", "on a batch of 8", "collate="]),
        ({"track": EXAMPLES + 1}, ["track=21", "expected 1 to 20"]),
        ({"track": [0, 25]}, ["index 25", "0 to 19"]),
        ({"track": [3, 3]}, ["different indices"]),
        (
            {"loss": lambda m, b: F.mse_loss(m.layers(b[0])[:, :1], b[1].float(), reduction="none").mean(1)},
            ["alone", "squeeze"],
        ),
        (
            {"loss": lambda m, b: F.mse_loss(m.layers(b[0])[:, :1], b[1].float(), reduction="none")},
            ["shape [8, 8]", "outputs[:, 0]"],
        ),
        ({"loss": lambda m, b: (m.train(), per_sample_loss(m, b))[1]}, ["module.train()"]),
        ({"loss": lambda m, b: per_sample_loss(m, b) / per_sample_loss(m, b).sum()}, ["depend on the other examples"]),
        (
            {
                "loss": lambda m, b: F.cross_entropy(
                    m.layers(b[0]) @ m.layers(b[0]).T, torch.arange(len(b[0])), reduction="none"
                )
            },
            ["compares examples"],
        ),
        ({"loss": lambda m, b: per_sample_loss(m, b) * torch.rand(len(b[0]))}, ["same example", "at random"]),
        ({"every": 1, "consecutive": 2}, ["consecutive=2", "every=1"]),
        ({"every": 0}, ["every=0"]),
        ({"budget": 0.0}, ["budget=0.0", "above 0"]),
        ({"budget": "5%"}, ["budget='5%'", "above 0"]),
        ({"steps": "many"}, ["steps='many'", "number of the training's steps"]),
        ({"sharpness_every": 0}, ["sharpness_every=0"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"dataset": Stream()}, ["Stream", "len()"]),
        ({"dataset": Changing(None)}, ["read again", "random transforms"]),
        ({"groups": {"a": [1, 99]}}, ["groups", "index 99", "0 to 19"]),
        ({"groups": [1, 2]}, ["groups is a list", "name ↦ indices"]),
        ({"dataset": {f"key {i}": data()[i] for i in range(EXAMPLES)}}, ["KeyError", "each index from 0 to 19"]),
        ({"class_names": ("one",)}, ["has no name"]),
        ({"module": lambda: Module(first=torch.nn.LazyLinear(8))}, ["layers.0.weight", "no shape yet"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_clear_line(tmp_path, settings, parts):
    settings = dict(settings)
    module = settings.pop("module", None)
    with pytest.raises(InputError) as raised:
        fitted(watching(tmp_path / "run", **settings), module=module)
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


class Two(Module):
    """Two optimizers, with two steps of the first per batch: Lightning counts three."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in (self.optimizers()[0], *self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward(per_sample_loss(self, batch).mean())
            optimizer.step()

    def configure_optimizers(self):
        first, *others = self.parameters()
        return [torch.optim.SGD([first], lr=0.1), torch.optim.Adam(others, lr=0.1)]


def test_a_batch_is_a_step_however_many_optimizers_step_in_it(tmp_path):
    fitted(watching(tmp_path / "run"), module=Two, steps=12)
    record = Record(tmp_path / "run")
    assert record["sample_loss"].steps.tolist() == record["batch_gradient_norm"].steps.tolist() == [0, 1, 2, 3]
    assert record["batch_size"].values.tolist() == [7, 7, 6, 7]
    assert record.is_complete


def test_the_record_of_another_training_is_not_overwritten(tmp_path):
    fitted(watching(tmp_path / "run"), steps=2)
    before = (tmp_path / "run" / "sample_loss.npy").read_bytes()
    again = watching(tmp_path / "run")
    fitted(again, steps=3)
    assert (tmp_path / "run" / "sample_loss.npy").read_bytes() == before
    assert again.folder == tmp_path / "run-2"
    assert len(Record(again.folder)["sample_loss"]) == 3


def test_a_loss_that_is_not_finite_ends_the_record_and_not_the_training(tmp_path):
    def breaking(module, batch):
        losses = per_sample_loss(module, batch)
        return torch.where(torch.tensor(module.global_step >= 3), torch.inf, losses)

    trainer, _ = fitted(watching(tmp_path / "run", loss=breaking))
    record = Record(tmp_path / "run")
    assert trainer.global_step == 8
    assert record["sample_loss"].steps.tolist() == [0, 1, 2]
    assert record.state == "stopped: the loss of train_dataset[0] is not finite at step 3"


def test_a_failing_training_leaves_a_readable_record(tmp_path):
    class Failing(Module):
        step = 0

        def training_step(self, batch, batch_idx):
            if self.global_step == self.step:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    for Failing.step, budget in ((0, 0.05), (3, None)):  # the first leaves no record
        signals = watching(tmp_path / "run", budget=budget, track=None if budget else EXAMPLES)
        with pytest.raises(RuntimeError, match="out of luck"):
            fitted(signals, module=Failing)
    record = Record(tmp_path / "run")
    assert record["sample_loss"].steps.tolist() == [0, 1, 2, 3]
    assert record["train_loss"].steps.tolist() == [0, 1, 2]
    assert record.state == "running"


def test_the_configuration_describes_the_training(tmp_path):
    fitted(watching(tmp_path / "run"), accumulate_grad_batches=2)
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["optimizer"]["_target_"] == "torch.optim.sgd.SGD"
    assert (configuration["optimizer"]["lr"], configuration["optimizer"]["momentum"]) == (0.3, 0.5)
    assert (configuration["batch"], configuration["accumulate_grad_batches"]) == (7, 2)
    assert Record(tmp_path / "run").provenance["data"]["examples"] == EXAMPLES


def test_a_fingerprint_sees_what_is_in_any_structure():
    def example(value):
        return {"x": [torch.tensor([1.0, value])], "y": (np.array([2]), "text", value)}

    assert fingerprint(example(1.0)) == fingerprint(example(1.0))
    assert fingerprint(example(1.0)) != fingerprint(example(1.5))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, opposing_signals; assert 'torch' not in sys.modules; assert opposing_signals.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the habits of notebooks and tuners -------------------------------------------------------------------------------


def trainer_of(*callbacks, **settings):
    return Trainer(
        callbacks=list(callbacks), logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


def loader(**settings):
    return DataLoader(data(), batch_size=5, shuffle=True, **settings)


def test_fit_goes_on_where_it_was_called_before(tmp_path):
    signals, module = watching(tmp_path / "run"), Module()
    trainer = trainer_of(signals, max_epochs=2)
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader())
    assert Record(tmp_path / "run")["sample_loss"].steps.tolist() == list(range(16))
    assert Record(tmp_path / "run").is_complete


def test_another_fit_of_the_same_callback_has_a_record_of_its_own(tmp_path):
    signals = watching(tmp_path / "run")
    for _ in range(2):
        trainer_of(signals, max_epochs=1).fit(Module(), loader())
    assert [len(Record(tmp_path / name)["sample_loss"]) for name in ("run", "run-2")] == [4, 4]


def test_a_run_that_is_resumed_elsewhere_has_a_record_of_the_rest(tmp_path):
    trainer, _ = fitted(watching(tmp_path / "one" / "run"), steps=5)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fitted(watching(tmp_path / "other" / "run"), steps=9, ckpt_path=tmp_path / "last.ckpt")
    (tmp_path / "one").rename(tmp_path / "moved")
    fitted(watching(tmp_path / "one" / "run"), steps=9, ckpt_path=tmp_path / "last.ckpt")
    for folder in (tmp_path / "other" / "run", tmp_path / "one" / "run"):
        assert Record(folder)["sample_loss"].steps.tolist() == [5, 6, 7, 8]


def test_tuners_leave_no_trace_in_the_record(tmp_path):
    class Tuned(Module):
        lr, batch_size = 0.1, 2

        def train_dataloader(self):
            return DataLoader(data(), batch_size=self.batch_size, shuffle=True)

    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path, "max_steps": 6}
    for number, tune in enumerate(
        (lambda tuner, m: tuner.lr_find(m, num_training=4), lambda tuner, m: tuner.scale_batch_size(m, max_trials=2))
    ):
        signals, module = watching(tmp_path / str(number)), Tuned()
        trainer = trainer_of(signals, **settings)
        tune(Tuner(trainer), module)
        trainer.fit(module)
        assert Record(signals.folder)["sample_loss"].steps.tolist() == list(range(6))
    signals = watching(tmp_path / "finder")
    trainer_of(LearningRateFinder(num_training_steps=4), signals, **settings).fit(Tuned())
    assert Record(signals.folder)["sample_loss"].steps.tolist() == list(range(6))


def test_two_callbacks_with_folders_of_one_name_watch_one_training(tmp_path):
    fitted(watching(tmp_path / "one" / "run", track=5), watching(tmp_path / "other" / "run", track=[7, 2]))
    assert Record(tmp_path / "one" / "run")["sample_loss"].values.shape == (8, 5)
    assert Record(tmp_path / "other" / "run")["sample_loss"].values.shape == (8, 2)


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2, "persistent_workers": True}], ids=str)
def test_the_rows_of_lightnings_batches_are_those_that_the_module_sees(tmp_path, settings):
    seen = []

    class Noting(Module):
        def training_step(self, batch, batch_idx):
            seen.append((batch[0].clone(), per_sample_loss(self, batch).detach()))
            return super().training_step(batch, batch_idx)

    module = Noting(dropout=0.0)
    trainer_of(watching(tmp_path / "run"), max_epochs=3).fit(module, loader(**settings))
    record, (x, _) = Record(tmp_path / "run"), data()[:]
    assert len(record["batch_index"]) == len(seen) == 12
    for index, losses, (inputs, expected) in zip(
        record["batch_index"].values, record["batch_loss"].values, seen, strict=True
    ):
        assert torch.equal(x[torch.from_numpy(index.copy())], inputs)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_loader_that_lightning_makes_anew_is_followed(tmp_path):
    trainer_of(watching(tmp_path / "run"), max_epochs=3, overfit_batches=2).fit(Module(), loader())
    index = Record(tmp_path / "run")["batch_index"].values
    assert sorted(index[:2].ravel()) == sorted(index[2:4].ravel()) == sorted(index[4:].ravel())
    assert (index >= 0).all()


def test_a_loader_of_whole_batches_is_followed(tmp_path):
    x, y = data()[:]
    whole = DataLoader(TensorDataset(x.view(4, 5, 6), y.view(4, 5)), batch_size=None)
    trainer_of(watching(tmp_path / "run"), max_epochs=2).fit(Module(), whole)
    assert Record(tmp_path / "run")["batch_size"].values.tolist() == [5] * 8
