"""A run's reference is trained first, once for all runs that share it, and ends at break-even."""

import numpy as np
import pytest
from composing import composed
from recording import assert_same

from opposing_signals.app.completion import recorded
from opposing_signals.configuration import decisive, reference_of, run_folder
from opposing_signals.record import Record
from opposing_signals.training.job import train

SMALL = ("data=planted", "data.images=24", "risk.chunk=10", "batch=8", "steps=30", "threads=1", "optimizer.lr=0.2")


def configuration(folder, run: str, *overrides: str):
    own = ("batch=null",) if run == "mlp5k_gd" else ()
    rule = ("optimizer.lr=0.001", "reference.optimizer.lr=0.2") if run == "mlp5k_adam" else ()
    config = composed("fig06b_projection", f"run={run}", *SMALL, *own, *rule, *overrides, output_dir=folder)
    wanted = ("train_loss", "sharpness", "projection", "break_even")
    config.instruments = {name: value for name, value in config.instruments.items() if name in wanted}
    return config


def test_rules_share_one_reference_that_ends_at_break_even(tmp_path):
    descent = recorded(configuration(tmp_path, "mlp5k_gd"), None)
    reference = Record(run_folder(reference_of(configuration(tmp_path, "mlp5k_gd"))))
    written = (reference.folder / "break_even_eigenvector.npy").stat().st_mtime_ns
    for run in ("mlp5k_sgd", "mlp5k_sgdm", "mlp5k_adam"):
        recorded(configuration(tmp_path, run), None)
    assert len(list((tmp_path / "runs").iterdir())) == 5
    assert (reference.folder / "break_even_eigenvector.npy").stat().st_mtime_ns == written
    assert reference.is_complete
    sharpness = reference["sharpness"]
    (step,) = reference["break_even_eigenvector"].steps
    assert step == sharpness.steps[-1] < 29
    assert sharpness.values[-1] > 2 / 0.2
    assert (sharpness.values[:-1] <= 2 / 0.2).all()
    np.testing.assert_array_equal(descent["sharpness"].values[: step + 1], sharpness.values)
    vector = reference["break_even_eigenvector"].values[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert len(descent["projection"]) == 30


def test_a_reference_killed_behind_break_even_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = recorded(reference_of(configuration(tmp_path / "whole", "mlp5k_gd")), None)
    config = reference_of(configuration(tmp_path / "killed", "mlp5k_gd", "checkpoint_seconds=0.0"))

    class KilledError(Exception):
        pass

    def killed(record, state):
        raise KilledError

    with monkeypatch.context() as patched, Record.writing(run_folder(config), decisive(config)) as record:
        patched.setattr(Record, "write_state", killed)
        with pytest.raises(KilledError):
            train(config, record, None)
    assert not Record(run_folder(config)).is_complete
    resumed = recorded(config, None)
    assert resumed.is_complete
    assert_same(resumed, whole)


def test_the_reference_differs_from_its_run_in_the_named_fields_alone(tmp_path):
    config = configuration(tmp_path, "mlp5k_adam", f"run_dir={tmp_path / 'mine'}", "seed=3")
    ours, theirs = decisive(config), decisive(reference_of(config))
    changed = set(ours["reference"])
    assert changed == {"run", "batch", "optimizer", "instruments"}
    assert theirs == {**{name: value for name, value in ours.items() if name != "reference"}, **ours["reference"]}
    assert run_folder(reference_of(config)).parent == tmp_path / "runs"
