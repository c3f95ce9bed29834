import numpy as np
import pytest
from recording import made

from opposing_signals.record import Record
from opposing_signals.studies.curvature.metrics import detrended, moving_average
from opposing_signals.studies.optimizers.rules import Rule, final, under

OPTIMIZERS = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "dampening": 0.0},
    "adam": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]},
    "split": {
        "_target_": "opposing_signals.optim.SplitSGD", "lr": 0.001, "sgd_lr": 10.0, "momentum": 0.9, "dampening": 0.9,
    },
    "still": {
        "_target_": "opposing_signals.optim.SplitSGD", "lr": 0.001, "sgd_lr": 0.0, "momentum": 0.9, "dampening": 0.9,
    },
    "undampened": {
        "_target_": "opposing_signals.optim.SplitSGD", "lr": 0.001, "sgd_lr": 1.0, "momentum": 0.9, "dampening": 0.0,
    },
}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Ten steps under each rule, on 20 examples in batches of 8: an epoch has three steps."""
    data = {"_target_": "opposing_signals.data.planted", "images": 20}
    return {
        name: made(
            tmp_path / name,
            {"optimizer": optimizer, "batch": 8, "data": data},
            {"data": {"name": "drawn", "examples": 20}},
            state="complete",
            train_loss=10.0 - np.arange(10),
            test_accuracy=([0, 8], [0.1, 0.7]),
        )
        for name, optimizer in OPTIMIZERS.items()
    }


def test_rules_name_themselves(runs):
    named = {name: str(Rule.of(run)) for name, run in runs.items()}
    assert named["sgd"] == "SGD η = 0.1, β = 0.9, τ = 0"
    assert named["adam"] == "Adam η = 0.001"
    assert named["split"] == "SplitSGD η₁ = 10, η₂ = 0.001, τ = 0.9"


def test_runs_under_a_rule_come_in_the_order_of_the_plain_step(runs):
    assert list(under(runs, "SplitSGD").values()) == [runs["still"], runs["undampened"], runs["split"]]
    assert list(under(runs, "SplitSGD", 0.9).values()) == [runs["still"], runs["split"]]
    assert list(under(runs, "SGD").values()) == [runs["sgd"]]
    assert under(runs, "SAM") == {}


def test_a_run_ends_with_its_last_epoch(runs, tmp_path):
    assert final(runs["sgd"]).tolist() == [3.0, 2.0, 1.0]
    assert final(runs["sgd"], "test_accuracy").tolist() == [0.7]
    with Record.writing(tmp_path / "sgd", runs["sgd"].configuration) as record:
        record.write_state("stopped: the training loss is nan at step 9")
    assert final(runs["sgd"]).tolist() == [np.inf] * 3
    assert final(runs["sgd"], "test_accuracy").tolist() == [1 / 6]  # chance among the classes of drawn images


@pytest.mark.parametrize("span", [1, 4, 5, 99])
def test_a_moving_average_keeps_a_constant_and_a_detrended_one_is_zero(span):
    np.testing.assert_allclose(moving_average(np.full(30, 3.0), span), 3.0)
    np.testing.assert_allclose(detrended(np.full(30, 3.0), span), 0.0, atol=1e-12)


def test_a_moving_average_is_that_of_the_values_around():
    values = np.random.default_rng(0).normal(size=30)
    averaged = moving_average(values, 5)
    for t in range(30):
        assert averaged[t] == pytest.approx(values[max(0, t - 2) : t + 3].mean())
    assert np.abs(detrended(np.arange(30.0), 5)[2:-2]).max() == pytest.approx(0, abs=1e-12)
