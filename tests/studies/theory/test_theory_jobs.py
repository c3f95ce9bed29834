"""The jobs of §3.3: their records agree with the mathematics, and bad input is refused in one line."""

import numpy as np
import pytest
from composing import composed
from hydra.utils import get_method

from opposing_signals.configuration import decisive, run_key
from opposing_signals.errors import InputError, TrainingStoppedError
from opposing_signals.record import Record
from opposing_signals.studies.theory import exact, toy
from opposing_signals.studies.theory.flow import IntegrationError

TINY_GRID = (
    "theory.grid.alpha.points=3",
    "theory.grid.k.points=2",
    "theory.grid.samples=120",
    "theory.paths.samples=50",
)


@pytest.fixture
def recorded(tmp_path):
    def run(experiment, *overrides):
        config = composed(experiment, *overrides)
        with Record.writing(tmp_path / "run", decisive(config)) as record:
            get_method(config.job)(config, record, None)
        return Record(tmp_path / "run")

    return run


def test_the_toy_valley_records_its_own_equations(recorded):
    record = recorded("fig04_toy_valley")
    w, s = record["w"].values, record["magnitude"].values
    np.testing.assert_allclose(w[1:], w[:-1] - toy.slope(w[:-1], s[:-1]), rtol=1e-12)
    np.testing.assert_allclose(record["train_loss"].values, record["group_loss"].values.mean(1))
    assert (s[0], s[-1]) == (1.0, pytest.approx(3.2))
    assert record.is_complete


def test_group_losses_of_the_model_average_to_its_train_loss(recorded):
    record = recorded("fig38b_linear_model", "steps=30")
    average = record["group_loss"].values @ [0.025, 0.025, 0.95]
    np.testing.assert_allclose(average, record["train_loss"].values)
    np.testing.assert_allclose(np.abs(record["projection"].values), np.exp(record["log_projection"].values))


@pytest.mark.parametrize("experiment", ["linear_cross_entropy", "linear_depth"])
def test_sampled_descent_depends_on_the_seed_alone(recorded, experiment, tmp_path):
    few = ("steps=3", "theory.points=100")
    first = recorded(experiment, *few)["train_loss"].values.copy()
    again = recorded(experiment, *few)["train_loss"].values.copy()  # begun anew in the same folder
    np.testing.assert_array_equal(first, again)
    (tmp_path / "run").rename(tmp_path / "other")
    assert not np.array_equal(first, recorded(experiment, *few, "seed=2")["train_loss"].values)


@pytest.mark.parametrize("experiment", ["fig04_toy_valley", "fig38b_linear_model", "theorem31"])
def test_a_seed_that_would_change_nothing_is_refused(recorded, experiment):
    with pytest.raises(InputError, match=r"seed=2: .* draws nothing at random"):
        recorded(experiment, "seed=2")


def test_the_theorems_grid_has_its_axes_and_every_ratio_is_recorded(recorded):
    record = recorded("theorem31", *TINY_GRID, "theory.descent.steps=50", "theory.descent.ratios.points=4")
    grid, holds = record["grid"].at(0), record["holds"].at(0)
    assert grid.shape == holds.shape == (4, 3, 2)
    np.testing.assert_allclose(np.unique(grid["alpha"]), [1, 1e3, 1e6])
    assert np.unique(grid["beta_norm"]).tolist() == [8, 16, 64, 256]
    assert holds["balance"].all()
    t, sharpness, *_ = record["path"].values[0]
    assert (t[0], sharpness[-1]) == (0, pytest.approx(float(exact.final_sharpness(30.0, 8.0)), rel=1e-6))
    np.testing.assert_allclose(record["descent_ratio"].values[[0, -1]], [0.85, 2.2])
    assert record["descent_log_b_o"].values.shape == (4, 51)


def test_a_beta_below_the_condition_is_warned_of_and_run(recorded, caplog):
    assert recorded("fig38b_linear_model", "steps=3", "theory.beta_norm=3").is_complete
    assert "beta_norm = 3 is below max(d1/sqrt(d1+d2), 24/5) = 5" in caplog.text


def test_a_grid_with_betas_below_the_condition_says_how_many(recorded, caplog):
    recorded("theorem31", *TINY_GRID, "theory.grid.beta_norm=[3.0,8.0]", "theory.descent.steps=5")
    assert "at 6 of 12 models" in caplog.text


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("fig38b_linear_model", "theory.d2=100", "needs d2 > d1"),
        ("fig38b_linear_model", "theory.p=0", "p=0: expected a finite number, above 0 and at most 1"),
        ("fig38b_linear_model", "theory.p=1.5", "p=1.5"),
        ("fig38b_linear_model", "theory.alpha=many", "alpha=many"),
        ("fig38b_linear_model", "optimizer.lr=0", "optimizer.lr=0: expected a finite number, above 0"),
        ("fig38b_linear_model", "steps=0", "steps=0"),
        ("fig04_toy_valley", "theory.settle=0", "settle=0"),
        ("fig04_toy_valley", "theory.share=2", "share = 2"),
        ("theorem31", "theory.grid.alpha.high=0.1", "alpha: from 1 to 0.1"),
        ("theorem31", "theory.grid.k.low=0.5", "smallest k = 0.5"),
        ("theorem31", "theory.grid.beta_norm=[]", "beta_norm=[]: expected a list of one or more numbers, or low, high"),
        ("theorem_map", "theory.grid.beta_norm=8", "beta_norm=8: expected a list"),
        (
            "theorem31",
            "theory.grid.beta_norm=[8,many]",
            "beta_norm=[8, many]: expected a list, each of it a finite number",
        ),
        ("theorem31", "theory.paths.alpha=[]", "alpha=[]: expected a list"),
        ("theorem31", "theory.grid.d1=many", "theory.grid.d1=many: expected a whole number"),
        ("theorem31", "theory.paths=3", "theory.paths=3: expected fields"),
        ("theorem31", "theory.descent.steps=0", "theory.descent.steps=0: expected a whole number"),
        ("fig38b_linear_model", "~theory", "theory=None: expected fields"),
        ("fig38b_linear_model", "~theory.d2", "missing a required argument: 'd2'; expected d1, d2, alpha"),
        ("fig38b_linear_model", "+theory.d3=4", "unexpected keyword argument 'd3'; expected d1, d2, alpha"),
        ("linear_cross_entropy", "theory.loss=nope", "theory.loss=nope: expected square or logistic"),
        ("linear_cross_entropy", "theory.points=2", "theory.points=2: no outlier of one sign"),
    ],
)
def test_bad_input_names_what_was_given(recorded, experiment, override, message):
    smaller = TINY_GRID[2:] if experiment.startswith("theorem") else ()
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        recorded(experiment, *smaller, override)
    assert message in str(error.value)


def test_a_failing_integration_is_one_line_with_time_and_state(recorded):
    with pytest.raises(IntegrationError, match=r"^[^\n]*t = 0 with epsilon = 0.03[^\n]*$") as error:
        recorded("theorem31", *TINY_GRID, "theory.paths.alpha=[1e300]")
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize(("experiment", "rate"), [("fig38b_linear_model", 0.05), ("linear_cross_entropy", 1e6)])
def test_divergence_stops_the_run_and_keeps_the_finite_steps(recorded, tmp_path, experiment, rate):
    few = ["steps=40"] + (["theory.points=100", "theory.loss=square"] if "cross" in experiment else [])
    with pytest.raises(TrainingStoppedError, match="not finite at step"):
        recorded(experiment, f"optimizer.lr={rate}", *few)
    record = Record(tmp_path / "run")
    assert record.state.startswith("stopped: the loss is not finite")
    assert np.isfinite(record["sharpness"].values).all()


def test_an_animation_does_not_change_the_key():
    assert run_key(composed("fig04_toy_valley")) == run_key(composed("fig04_toy_valley", "~animation"))
