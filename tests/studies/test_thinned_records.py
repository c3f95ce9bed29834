"""Statistics of a run recorded at some of its steps agree with those of the whole run, or are not given."""

import numpy as np
import pytest
from recording import made, why

from opposing_signals.studies.conjectures.figures import descents, group_variance
from opposing_signals.studies.curvature import claims as curvature
from opposing_signals.studies.curvature.metrics import sizes_by_floor_distance
from opposing_signals.studies.groups import claims as groups
from opposing_signals.studies.groups.figures import group_losses
from opposing_signals.studies.optimizers import claims as optimizers
from opposing_signals.studies.optimizers.figures import sgd_groups

STEPS, POINTS = 400, 120
ACTIVE = (200, 300)
EVERY = {
    "whole": range(STEPS),
    "pairs of steps": [step for step in range(STEPS) if step % 5 < 2],
    "stretches": [step for step in range(STEPS) if step % 50 < 40],
}


@pytest.fixture
def run(tmp_path):
    """A run whose first ten points oppose the next ten at steps 200 to 300, reversing at every step."""

    def make(steps, name="run", **quantities):
        generator = np.random.default_rng(0)
        losses = 2 + 0.01 * generator.normal(size=(STEPS, POINTS))
        swing = np.where(np.arange(STEPS) % 2, 1.0, -1.0)[ACTIVE[0] : ACTIVE[1], None]
        losses[slice(*ACTIVE), :10] += swing
        losses[slice(*ACTIVE), 10:20] -= swing
        configuration = {
            "run": {"name": "made_up"},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "batch": 20,
            "reference": {},
            "data": {"_target_": "opposing_signals.data.planted", "images": POINTS},
        }
        run = made(
            tmp_path / name,
            configuration,
            {"data": {"name": "drawn", "examples": POINTS}},
            sample_loss=(steps, losses[steps].astype(np.float32)),
            train_loss=(steps, losses[steps].mean(1)),
            jacobian_norm=(steps, np.ones(len(steps))),
            sharpness=np.full(STEPS, 21.0),
            **quantities,
        )
        return {"run": run}

    return make


@pytest.mark.parametrize("kind", EVERY)
def test_a_pair_is_active_at_the_steps_at_which_it_is(run, kind):
    (pair,) = run(EVERY[kind])["run"].pairs
    assert {frozenset(group) for group in pair.groups} == {frozenset(range(10)), frozenset(range(10, 20))}
    for found, true in zip(pair.window, ACTIVE, strict=True):
        assert abs(found - true) <= (25 if kind == "pairs of steps" else 15)
    assert pair.amplitude == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("figure", [group_losses, group_variance, sgd_groups, descents])
def test_figures_draw_a_pair_where_it_is_active(run, kind, figure):
    made = run(EVERY[kind])
    (pair,) = made["run"].pairs
    drawn = figure(made, title="drawn") if figure is descents else figure(made)
    losses = [made["run"].losses.at(step)[pair.rising].mean() for step in EVERY[kind]]
    expected = dict(zip(EVERY[kind], losses, strict=True))
    lines = [line for axes in drawn.axes for line in axes.lines if len(line.get_xdata()) > 3]
    found = 0
    for line in lines:
        x, y = (np.asarray(values, float) for values in (line.get_xdata(), line.get_ydata()))
        known = ~np.isnan(x)
        if np.allclose(y[known], [expected.get(step, np.inf) for step in x[known]], rtol=1e-5):
            assert pair.window[0] <= x[known].min() < x[known].max() <= pair.window[1] + 1
            found += 1
    assert found >= 1


def test_the_variance_of_groups_is_that_of_the_whole_run_or_is_not_given(run):
    """A trend over 21 steps can be removed within stretches of 40 steps, but not within pairs of steps."""
    whole, stretches = (
        optimizers.group_variance_ratio(run(EVERY[kind], kind)).value for kind in ("whole", "stretches")
    )
    assert stretches == pytest.approx(whole, rel=0.2)
    thinned = run(EVERY["pairs of steps"], "thinned")
    assert "21 or more successive ones" in why(optimizers.group_variance_ratio, thinned)


def test_losses_of_every_second_step_tell_of_no_change(run):
    thinned = run(range(0, STEPS, 2))
    assert "not measured at enough successive steps" in why(groups.pair_correlation, thinned)
    assert "0 of the 10 needed one-step changes" in why(groups.share_increasing, thinned, "run", False)


def test_the_share_of_turns_is_that_of_the_whole_run_or_is_not_given(run):
    for kind in ("whole", "stretches"):
        made = run(EVERY[kind], kind)
        (pair,) = made["run"].pairs
        inside = [step for step in EVERY[kind] if step - 1 in EVERY[kind] and step + 1 in EVERY[kind]]
        turning = np.mean(
            [ACTIVE[0] <= step < ACTIVE[1] - 1 for step in inside if pair.window[0] < step <= pair.window[1]]
        )
        assert optimizers.sign_change_share(made).value >= turning
    thinned = run(EVERY["pairs of steps"], "thinned")
    assert "3 or more successive ones" in why(optimizers.sign_change_share, thinned)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_steps_along_v_are_those_between_successive_steps(run, every):
    """The iterate reverses at every step by about 1."""
    sizes = 1 + 0.1 * np.random.default_rng(1).random(STEPS)
    along = np.cumsum(np.where(np.arange(STEPS) % 2, 1.0, -1.0) * sizes)
    at = np.arange(0, STEPS, every)
    made = run(range(3), projection=(at, along[at]), floor_distance=(at, np.ones(len(at))))
    _, steps = sizes_by_floor_distance(made["run"], "step_along_v", 0)
    if every == 1:
        assert curvature.reversal_rate(made, "run", "run").value == 1
        assert np.median(steps) == pytest.approx(1.05, abs=0.01)
    else:
        assert "not measured at enough successive steps" in why(curvature.reversal_rate, made, "run", "run")
        assert len(steps) == 0


def test_a_stretch_of_successive_steps_tells_of_reversals(run):
    along = np.cumsum(np.where(np.arange(STEPS) % 2, 1.0, -1.0))
    at = np.array(EVERY["stretches"])
    assert curvature.reversal_rate(run(range(3), projection=(at, along[at])), "run", "run").value == 1
