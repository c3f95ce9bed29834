import numpy as np
import pytest
import recording
from recording import why

from opposing_signals.studies.theory import claims as theory


@pytest.fixture
def trajectories(tmp_path):
    def make(**quantities):
        return {"run": recording.made(tmp_path, {"optimizer": {"lr": 1.0}, "theory": {"share": 0.5}}, **quantities)}

    return make


def three_phases():
    sharpness = np.array([1.5, 1.0, 0.5, 1.0, 2.5, 3.0, 3.0, 1.9, 1.8, 1.8])
    projection = np.array([1.0, 0.5, 0.2, 0.1, 0.05, -0.06, 0.1, -0.3, 0.2, -0.1])
    return {"sharpness": sharpness, "projection": projection}


def test_three_phases_are_measured_in_their_windows(trajectories):
    made = trajectories(**three_phases())
    assert theory.initial_decrease(made).value == pytest.approx(0.5 / 1.5)
    assert theory.growth_to_break_even(made).value == pytest.approx(5.0)
    assert theory.alternation(made).value == 1.0
    assert theory.oscillation_growth(made).value == pytest.approx(0.5 / 0.11)
    assert theory.phase_order(made).value == 2  # start 0, smallest 2, break-even 4, largest step at 7
    assert theory.phase_order(made).reason == "λ is smallest at step 2, of 4 to break-even"


def test_a_drift_is_no_alternation(trajectories):
    made = trajectories(**{**three_phases(), "projection": np.linspace(0, 1, 10)})
    assert theory.alternation(made).value == 0.0


def test_without_break_even_nothing_is_claimed(trajectories):
    made = trajectories(sharpness=np.ones(10), projection=np.zeros(10))
    for statistic in (theory.initial_decrease, theory.phase_order, theory.alternation, theory.oscillation_growth):
        assert "did not reach" in why(statistic, made)


def test_shares_of_the_grid_count_only_models_under_the_conditions(trajectories):
    def table(**columns):
        array = np.empty(4, [(name, np.asarray(value).dtype) for name, value in columns.items()])
        for name, value in columns.items():
            array[name] = value
        return [array]

    made = trajectories(
        grid=table(k=[1.1, 1.1, 2.0, 3.0]),
        conditions=table(wide=[True, True, True, False], narrow=[False, True, False, False], never=[False] * 4),
        holds=table(one=[False, True, True, False], other=[True, True, False, True]),
    )
    assert theory.share_holding(made, ["one"]).value == 0.5
    assert theory.share_holding(made, ["one"], ["wide"]).value == pytest.approx(2 / 3)
    assert theory.share_holding(made, ["one", "other"], ["wide"]).value == pytest.approx(1 / 3)
    assert theory.share_holding(made, ["one"], ["wide"], smallest_k=1.6).value == 1.0
    assert "never" in why(theory.share_holding, made, ["one"], ["never"])
    assert theory.coverage_ratio(made, ["one"], ["wide"], ["narrow"]).value == 2.0


def test_step_sizes_around_the_edge_and_the_divergence(trajectories):
    shrinking, growing = -np.arange(6.0), np.array([0, -1, -2, -1, -0.5, -3.0])
    made = trajectories(
        descent_ratio=[0.9, 1.0, 1.2, 1.9, 2.1],
        descent_log_b_o=[shrinking, shrinking, growing, growing, np.array([0, 1, 2, np.inf, np.nan, np.nan])],
        descent_sign=[[1] * 6, [1] * 6, [1, 1, 1, -1, 1, -1], [1] * 6, [0] * 6],
        descent_eta_lambda=[
            [1.0] * 6, [1.9] * 6, [1, 1.5, 2.1, 2.1, 1.9, 1.8], [1.9] * 6, [1, 2, 3, np.nan, np.nan, np.nan],
        ],
    )  # fmt: skip
    assert theory.largest_stable_step(made).value == 1.0
    assert theory.largest_returning_step(made).value == pytest.approx(0.95)
    assert theory.growth_steps(made, alternating=True).value == 1.0
    assert theory.growth_steps(made, alternating=False).value == 1.0


def test_the_valley_is_left_from_break_even_on(trajectories):
    w = np.array([1.0, 0.5, 0.1, -0.2, 0.4, -0.8])
    made = trajectories(w=w, minimum=np.zeros(6), sharpness=[1, 1, 2.1, 2.1, 2.1, 2.1], magnitude=[1.0] * 6)
    assert theory.approach(made).value == 1.0
    assert theory.side_changes(made).value == 1.0
    assert theory.divergence_from_minimum(made).value == pytest.approx(8.0)
    assert theory.turning_point(made).value == 0.0
    assert "stable" in why(theory.two_cycle_ratio, made)
