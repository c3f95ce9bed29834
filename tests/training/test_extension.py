"""A run that takes over another run's recordings holds the bits of one that measured everything itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from omegaconf import DictConfig, OmegaConf
from recording import assert_same, assert_same_weights, stopped

from opposing_signals.app.completion import recorded
from opposing_signals.choices import choices, written
from opposing_signals.configuration import run_folder
from opposing_signals.record import Record, Series
from opposing_signals.training.module import TrainingModule

NETWORK = ("model=resnet56", "model.depth=8", "model.width=2")  # with batch norm
IMAGES = ("fig01_group_losses", *NETWORK, "data.images=12", "risk.chunk=6", "steps=3", "threads=1")
PERCEPTRON = ("data=planted", "data.images=12", "risk.chunk=6", "model.hidden=[5]", "batch=4", "steps=3", "threads=1")
MINIBATCH = ("fig06b_projection", "run=mlp5k_minibatch", "optimizer.momentum=0.9", *PERCEPTRON)
CURVE = ("fig03_chebyshev", "steps=3", "threads=1", "model.hidden=[5]")
ALONG = (*("fig06b_projection", "run=mlp5k_adam", "reference.optimizer.lr=2", "+reference.steps=30", *PERCEPTRON),)
SETTINGS = {
    "sharpness": {"max_products": 4},
    "gradient_sketch": {"dimensions": 3},
    "sample_sharpness": {"count": 2, "max_products": 3},
    "jacobian": {"points": 3},
    "spectral_density": {"steps": 3},
    "preconditioned_sharpness": {"max_products": 3},
    "batch_sharpness": {"batches": 2},
    "block_probe": {"probes": ["sky"]},
    "token_losses": {"sequences": 2, "with_pattern": 0, "keep": 3},
}
CASES = {
    "images": ("snapshots", IMAGES, "predictions", "block_probe", "sharpness"),
    "minibatches": ("snapshots", MINIBATCH, "sample_losses", "predictions", "batch_sharpness", "sharpness"),
    "curve": (
        *("snapshots", CURVE, "outputs", "sample_losses", "gradient_norms", "gradient_sketch", "jacobian"),
        *("spectral_density", "sharpness", "gauss_newton", "sample_curvature"),
    ),
    "along a direction": ("snapshots", ALONG, "projection", "floor_distance"),
    "Adam": ("training", ALONG, "effective_step_size", "preconditioned_sharpness", "snapshots"),
    "running statistics": ("training", IMAGES, "sample_sharpness", "test_accuracy"),
    "flow": ("training", (*CURVE, "optimizer=gradient_flow", "optimizer.lr=0.01"), "integration"),
    "SplitSGD": ("training", (*CURVE, "optimizer=split_sgd", "optimizer.lr=0.002"), "signed_share"),
    "text": ("training", ("fig07_text_quotes", "run=gpt2_adam", "steps=3", "threads=1"), "token_losses"),
}
"""How a second job computes its instruments (from snapshots or by training), the training, and these instruments."""


def configured(folder: Path, training: tuple[str, ...], *names: str, every: int = 2) -> DictConfig:
    config = composed(*training, output_dir=folder)
    OmegaConf.set_struct(config, False)
    config.instruments = {}
    for name in ("train_loss", *names):
        own = {"consecutive": 1, "every": 1 if name == "train_loss" else every, **SETTINGS.get(name, {})}
        config.instruments = OmegaConf.merge(config.instruments, written("instruments", name), {name: own})
    return config


@pytest.mark.parametrize("case", CASES)
def test_what_is_added_has_the_bits_of_a_run_made_in_one_go(case, tmp_path):
    """The same holds for training, which is bit-identical with and without each instrument."""
    way, training, *added = CASES[case]
    kept = ("snapshots",) if way == "snapshots" else ()
    whole = recorded(configured(tmp_path / "whole", training, *kept, *added), None)
    source = recorded(configured(tmp_path / "parts", training, *kept), None)
    extended = recorded(configured(tmp_path / "parts", training, *kept, *added), None)
    assert_same(extended, whole)
    assert_same_weights(whole, source)
    extended.verify()
    extends = extended.provenance["extends"]
    assert (extends["run"], extends["way"]) == (source.folder.name, way)
    assert {*extends["quantities"]} == {*source}


def test_every_instrument_that_cannot_end_a_run_is_added_somewhere():
    assert {name for _, _, *added in CASES.values() for name in added} == {*choices("instruments")} - {
        "train_loss", "break_even",
    }  # fmt: skip


BASE = ("snapshots", "sample_losses", "sharpness")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Record:
    folder = tmp_path_factory.mktemp("source")
    return recorded(configured(folder, (*CURVE, "steps=6"), *BASE), None)


def extending(source: Record, *names: str, overrides: tuple[str, ...] = (), every: int = 2) -> DictConfig:
    return configured(source.folder.parents[1], (*CURVE, "steps=6", *overrides), *names, every=every)


def passes_of(monkeypatch) -> list[int]:
    """The steps from now on that take a pass."""
    taken: list[int] = []
    take = TrainingModule._take_step
    monkeypatch.setattr(TrainingModule, "_take_step", lambda self, batch: (taken.append(self.step), take(self, batch)))
    return taken


@pytest.mark.parametrize(
    ("names", "every", "passes", "taken"),
    [
        (("sample_losses",), 2, [], ["train_loss", "train_accuracy", "sample_loss"]),
        ((*BASE, "jacobian"), 2, [0, 2, 4], None),
        ((*BASE, "gauss_newton"), 2, [0, 2, 4], ["train_loss", "sample_loss", "parameters"]),
        (("sharpness",), 3, [0, 1, 2, 3, 4, 5], ["train_loss"]),
    ],
    ids=["less", "from snapshots", "with what it takes from", "other steps than the snapshots'"],
)
def test_what_is_measured_again(source, names, every, passes, taken, monkeypatch):
    steps = passes_of(monkeypatch)
    extended = recorded(extending(source, *names, every=every), None)
    assert steps == passes
    quantities = {*source} if taken is None else {*taken} & {*source}
    assert {*extended.provenance["extends"]["quantities"]} == quantities
    assert_same_weights(extended, source)


@pytest.mark.parametrize("name", ["jacobian", "preconditioned_sharpness"], ids=["from snapshots", "by training"])
def test_an_extension_that_is_killed_goes_on_with_the_same_bits(name, tmp_path, monkeypatch):
    training = (*CURVE, "steps=6", *(("optimizer=adam",) if name == "preconditioned_sharpness" else ()))
    kept = ("snapshots",) if name == "jacobian" else ()
    whole = recorded(configured(tmp_path / "whole", training, *kept, name), None)
    recorded(configured(tmp_path / "parts", training, *kept), None)
    config = configured(tmp_path / "parts", training, *kept, name)
    quantity = "jacobian_norm" if name == "jacobian" else name
    stopped(run_folder(config), config, 4, monkeypatch, quantity)
    assert "train_loss" not in Record(run_folder(config))
    passes = passes_of(monkeypatch)
    assert_same(recorded(config, None), whole)
    assert 0 not in passes


@pytest.mark.parametrize("names", [("jacobian",), ()], ids=["measured", "copied alone"])
def test_an_extension_that_is_killed_while_it_copies_ends_with_the_same_bits(names, source, tmp_path, monkeypatch):
    shutil.copytree(source.folder, tmp_path / "runs" / source.folder.name)
    config = configured(tmp_path, (*CURVE, "steps=6"), "sample_losses", *names)
    replace = Record.replace

    def replace_one(record, quantity, series):
        if len(list(record)) > 4 * len(names):
            raise KeyboardInterrupt
        replace(record, quantity, series)

    with monkeypatch.context() as patched:
        patched.setattr(Record, "replace", replace_one)
        with pytest.raises(KeyboardInterrupt):
            recorded(config, None)
    assert not Record(run_folder(config)).is_complete
    copied = recorded(config, None)
    for quantity in ("train_loss", "sample_loss"):
        np.testing.assert_array_equal(copied[quantity].values, source[quantity].values)
    assert_same_weights(copied, source)
    copied.verify()


def test_trainings_that_went_apart_are_not_mixed(tmp_path, caplog):
    source = recorded(configured(tmp_path, CURVE, *BASE), None)
    with Record.writing(source.folder, source.configuration) as record:
        losses = record["train_loss"]
        changed = np.where(losses.steps == 2, losses.values + 1e-9, losses.values)
        record.replace("train_loss", Series(losses.steps.copy(), changed))
    extended = recorded(configured(tmp_path, CURVE, *BASE, "gradient_norms"), None)
    assert sum("the train loss at step 2 is" in message for message in caplog.messages) == 2
    assert "extends" not in extended.provenance
    assert_same(extended, recorded(configured(tmp_path / "alone", CURVE, *BASE, "gradient_norms"), None))


@pytest.mark.parametrize(
    ("overrides", "names"),
    [(("steps=5",), BASE), (("optimizer.lr=0.1",), BASE), ((), (*BASE, "break_even"))],
    ids=["fewer steps", "another step size", "may end"],
)
def test_what_is_not_extended(source, overrides, names):
    assert "extends" not in recorded(extending(source, *names, overrides=overrides), None).provenance


def test_more_steps_go_on_where_a_complete_run_ends(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "opposing_signals")
    names = ("sharpness", "sample_losses")
    whole = recorded(configured(tmp_path / "whole", (*CURVE, "steps=8"), *names), None)
    shorter = recorded(configured(tmp_path / "parts", (*CURVE, "steps=5"), *names), None)
    passes = passes_of(monkeypatch)
    longer = recorded(configured(tmp_path / "parts", (*CURVE, "steps=8"), *names), None)
    assert passes == [5, 6, 7]
    assert_same(longer, whole)
    assert longer.provenance["continues"] == shorter.folder.name
    assert f"going on from the last step of {shorter.folder}" in caplog.text
    shorter.verify()


def test_a_damaged_run_is_left_alone(tmp_path, caplog):
    source = recorded(configured(tmp_path, CURVE, "sample_losses"), None)
    path = source.folder / "sample_loss.npy"
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    extended = recorded(configured(tmp_path, CURVE, "sample_losses", "jacobian"), None)
    assert "extends" not in extended.provenance
    assert "sample_loss.npy is damaged: the checksum of its row" in caplog.text
    extended.verify()
