import numpy as np
import pytest
import recording
from recording import why

from opposing_signals.signals import Trajectory
from opposing_signals.studies.curvature import claims as curvature

POINTS, STEPS, BREAK_EVEN = 300, 60, 20
TENSORS = ["embedding.weight", "blocks.0.weight", "head.weight", "head.bias"]


@pytest.fixture
def made(tmp_path):
    def make(name: str = "run", reference=None, **quantities) -> Trajectory:
        configuration = {"optimizer": {"lr": 1.0}, "reference": reference or {}}
        return recording.made(tmp_path / name, configuration, {"tensors": TENSORS}, **quantities)

    return make


SHARPNESS = np.where(np.arange(STEPS) < BREAK_EVEN, 1.0, 2.0)


def opposed_losses(amplitude: float) -> np.ndarray:
    """The first 20 points oppose the next 20; the others move by 0.01 from step to step."""
    generator = np.random.default_rng(0)
    losses = 5 + 0.005 * np.where(np.arange(STEPS) % 2, 1, -1)[:, None] * np.sign(generator.normal(size=POINTS))
    swing = amplitude / 2 * np.where(np.arange(STEPS) % 2, 1.0, -1.0)
    losses[:, :20] = 5 + swing[:, None]
    losses[:, 20:40] = 5 - swing[:, None]
    return losses


def test_outliers_by_loss_change_against_random_points(made):
    run = {"run": made(sample_loss=opposed_losses(1.0), sharpness=SHARPNESS)}
    estimate = curvature.outlier_ratio(run, "loss_change")
    assert estimate.value == pytest.approx(100, rel=1e-3)
    low, high = estimate.interval
    assert low <= estimate.value <= high


@pytest.mark.parametrize("metric", ["gradient_norm", "sample_curvature"])
def test_only_measured_steps_after_break_even_count(made, metric):
    measured = list(range(0, STEPS, 5))
    rows = np.ones((len(measured), POINTS))
    rows[:, :40] = np.where(np.array(measured) >= BREAK_EVEN, 7.0, 1000.0)[:, None]
    quantities = {metric: (measured, rows), "sample_loss": opposed_losses(1.0), "sharpness": SHARPNESS}
    assert curvature.outlier_ratio({"run": made(**quantities)}, metric).value == pytest.approx(7)


def test_the_least_outstanding_pair_decides(made):
    losses = opposed_losses(1.0)
    slow = 0.2 * np.where(np.arange(STEPS) // 2 % 2, 1.0, -1.0)[:, None]
    losses[:, 40:60] = 5 + slow
    losses[:, 60:80] = 5 - slow
    rows = np.ones((STEPS, POINTS))
    rows[:, :40], rows[:, 40:80] = 9.0, 4.0
    run = made(sample_loss=losses, sharpness=SHARPNESS, gradient_norm=rows)
    assert len(run.pairs) == 2
    assert curvature.outlier_ratio({"run": run}, "gradient_norm").value == pytest.approx(4)


def test_a_negative_median_of_random_points_counts_by_its_size(made):
    rows = np.full((STEPS, POINTS), -2.0)
    rows[:, :40] = 5.0
    run = made(sample_loss=opposed_losses(1.0), sharpness=SHARPNESS, sample_curvature=rows)
    assert curvature.outlier_ratio({"run": run}, "sample_curvature").value == pytest.approx(2.5)


def test_own_hessians_of_risers_and_fallers_against_random_points(made):
    rows = np.tile([8.0, 8.0, 4.0, 4.0, 2.0, 1.0], (STEPS, 1))  # two risers, two fallers, two random points
    rows[:BREAK_EVEN] = 1.0
    assert curvature.outlier_sharpness_ratio({"run": made(sharpness=SHARPNESS, sample_sharpness=rows)}).value == 4


def test_outliers_of_a_run_that_cannot_tell(made):
    stable = {"run": made("stable", sample_loss=opposed_losses(1.0), sharpness=np.ones(STEPS))}
    assert why(curvature.outlier_ratio, stable, "loss_change") == "λ did not reach 2/η"
    without = {"run": made("without", sample_loss=np.ones((STEPS, POINTS)), sharpness=SHARPNESS)}
    assert "no opposing pair" in why(curvature.outlier_ratio, without, "loss_change")
    few = {"run": made("few", sharpness=SHARPNESS, sample_sharpness=([0, 30, 40], np.ones((3, 6))))}
    assert "2 of the 10 needed steps after break-even" in why(curvature.outlier_sharpness_ratio, few)


def test_shares_of_the_eigenvector(made):
    measured = [0, 1, 10, 11, 20]
    shares = np.tile([0.6, 0.3, 0.1, 0.0], (5, 1))
    shares[:2] = [0.1, 0.7, 0.1, 0.1]
    shares[4, 3] = 0.02
    run = {"run": made(eigenvector_share=(measured, shares))}
    assert curvature.share_sum_error(run).value == pytest.approx(0.02)
    assert curvature.tensor_share(run, "embedding.weight", first_step=10).value == 0.6
    assert curvature.tensor_share(run, "embedding.weight", first_step=0).value == 0.6
    assert curvature.tensor_share(run, "blocks.0.weight", first_step=10).value == 0.3
    assert curvature.module_over_others(run, "embedding", first_step=10).value == pytest.approx(2)
    assert curvature.module_over_others(run, "head", first_step=10).value == pytest.approx(1 / 6)
    assert "no tensor stem" in why(curvature.tensor_share, run, "stem", first_step=10)
    assert "no module stem" in why(curvature.module_over_others, run, "stem", first_step=10)
    assert "0 of the 1 needed steps from 30 on" in why(curvature.tensor_share, run, "head.bias", first_step=30)


def rules(made, **references) -> dict[str, Trajectory]:
    """Before break-even every rule drifts; after it, a reverses every step, b three of four, c one of four."""
    patterns = {"a": [1, -1, 1, -1], "b": [1, -1, 1, 1], "c": [1, 1, -1, -1]}
    runs = {}
    for name, pattern in patterns.items():
        moves = np.concatenate([np.ones(BREAK_EVEN), np.tile(pattern, 10)])
        projection = np.concatenate([[0.0], np.cumsum(moves)])
        runs[name] = made(name, references.get(name), projection=projection, sharpness=SHARPNESS)
    return runs


def test_reversals_along_the_direction_count_from_break_even_on(made):
    runs = rules(made)
    assert curvature.reversal_rate(runs, "a", descent="a").value == 1
    rate_b, rate_c = 20 / 39, 19 / 39  # 39 steps have a predecessor
    assert curvature.reversal_rate(runs, "b", descent="a").value == pytest.approx(rate_b)
    assert curvature.reversal_difference(runs, "b", "a", descent="a").value == pytest.approx(rate_b - 1)
    assert curvature.reversal_difference(runs, "c", "b", descent="a").value == pytest.approx(rate_c - rate_b)
    ratio = curvature.reversal_ratio(runs, "c", "b", descent="a")
    assert ratio.value == pytest.approx(rate_c / rate_b)
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]


def test_rules_that_cannot_be_compared(made):
    runs = rules(made, b={"optimizer": {"lr": 0.5}})
    assert "different references" in why(curvature.reversal_difference, runs, "b", "a", descent="a")
    assert "the run d is missing" in why(curvature.reversal_rate, runs, "d", descent="a")
    stable = made("stable", projection=np.arange(STEPS), sharpness=np.ones(STEPS))
    assert "did not reach" in why(curvature.reversal_rate, {"stable": stable}, "stable", descent="stable")
    short = made("short", projection=np.arange(25), sharpness=SHARPNESS)
    assert "3 successive steps along v" in why(curvature.reversal_rate, {"short": short}, "short", descent="short")
    drift = made("drift", projection=np.arange(STEPS), sharpness=SHARPNESS)
    assert "no step of drift" in why(curvature.reversal_ratio, {"drift": drift}, "drift", "drift", descent="drift")


def test_sizes_near_and_far_from_the_floor(made):
    distance = np.where(np.arange(STEPS) % 2, 1.0, -1.0) * np.linspace(0.1, 1, STEPS)
    size = np.full(STEPS, 4.0)
    size[BREAK_EVEN : BREAK_EVEN + 4] = 1.0  # of the steps after break-even these are nearest to the floor
    size[-5:] = 8.0
    distance[30:32] = np.nan  # there the valley has no floor
    projection = np.concatenate([[0.0], np.cumsum(-size[:-1])])
    quantities = {"effective_step_size": size, "projection": projection, "sharpness": SHARPNESS}
    run = {"run": made(floor_distance=distance, **quantities)}
    for quantity in ("effective_step_size", "step_along_v"):
        for steps, expected in (("nearest", 0.25), ("farthest", 2.0)):
            estimate = curvature.size_by_floor_distance(run, quantity, "run", descent="run", steps=steps)
            assert estimate.value == expected
    strided = {"run": made("strided", floor_distance=(range(0, STEPS, 6), distance[::6]), **quantities)}
    few = (strided, "effective_step_size", "run")
    assert "of the 10 needed measured steps" in why(
        curvature.size_by_floor_distance, *few, descent="run", steps="nearest"
    )


def test_the_jacobian_grows_up_to_break_even(made):
    norms = ([0, 10, 20, 30], [2.0, 3.0, 5.0, 1.0])
    run = {"run": made(jacobian_norm=norms, sharpness=SHARPNESS)}
    assert curvature.jacobian_growth(run, "run").value == 2.5
    assert "missing" in why(curvature.jacobian_growth, run, "other")
    stable = {"run": made("stable", jacobian_norm=norms, sharpness=np.ones(STEPS))}
    assert "did not reach" in why(curvature.jacobian_growth, stable, "run")
    once = {"run": made("once", jacobian_norm=([0, 30], [1.0, 2.0]), sharpness=SHARPNESS)}
    assert "1 of the 3 needed measurements of the norm up to break-even at step 20" in why(
        curvature.jacobian_growth, once, "run"
    )
