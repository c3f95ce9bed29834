"""What a run writes along the direction of its reference, against explicit formulas in an independent loop."""

import numpy as np
import pytest
import torch
from composing import composed

from opposing_signals.configuration import decisive, reference_of, run_folder
from opposing_signals.data import chebyshev
from opposing_signals.errors import InputError
from opposing_signals.models import mlp
from opposing_signals.record import Record
from opposing_signals.training.batches import Batches
from opposing_signals.training.job import train

STEPS, BATCH, ETA, EPS = 5, 6, 0.03, 1e-3
CHEBYSHEV = {"degree": 5, "points": 20}
TINY = (
    "loss=square",
    "model.hidden=[4,5]",
    "model.activation=tanh",
    "risk.precision=float64",
    "risk.chunk=7",
    "instruments.projection.every=1",
    f"steps={STEPS}",
    "threads=1",
)
PARAMETERS = 4 + 4 + 20 + 5 + 5 + 1


def with_direction(folder, vector, run: str, *overrides: str):
    """The configuration of ``run``, whose reference ended with ``vector`` as its eigenvector."""
    config = composed("fig06b_projection", f"run={run}", *TINY, *overrides, output_dir=folder)
    config.data = {"_target_": "opposing_signals.data.chebyshev", **CHEBYSHEV}
    reference = reference_of(config)
    with Record.writing(run_folder(reference), decisive(reference)) as record:
        if vector is not None:
            record.append("break_even_eigenvector", 3, vector)
        record.write_state("complete")
    return config


def recorded(config) -> Record:
    with Record.writing(run_folder(config), decisive(config)) as record:
        train(config, record, None)
    return Record(run_folder(config))


@pytest.fixture
def direction() -> np.ndarray:
    vector = np.random.default_rng(0).normal(size=PARAMETERS)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_projection_floor_and_step_sizes_are_those_of_a_plain_loop(tmp_path, direction):
    config = with_direction(
        tmp_path, direction, "mlp5k_adam", "instruments.floor_distance.every=1", f"batch={BATCH}",
        f"optimizer.lr={ETA}", f"optimizer.eps={EPS}",
    )  # fmt: skip
    record = recorded(config)
    data = chebyshev(**CHEBYSHEV)
    x, y = data.inputs.double(), data.targets.double()
    torch.manual_seed(config.seed)
    model = mlp((1,), 1, (4, 5), "tanh").double()
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    v = torch.from_numpy(direction).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(weights, rows):
        pieces = weights.split([shape.numel() for shape in shapes.values()])
        state = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return 0.5 * (torch.func.functional_call(model, state, (x[rows],)) - y[rows]).square().sum(1).mean()

    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    whole = slice(None)
    for step, batch in zip(range(STEPS), Batches(len(x), BATCH, config.seed), strict=False):
        slope = torch.func.grad(loss)(theta, whole) @ v
        curvature = v @ torch.func.hessian(loss)(theta, whole) @ v
        gradient = torch.func.grad(loss)(theta, batch)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        sizes = ETA / ((second / (1 - 0.999 ** (step + 1))).sqrt() + EPS)
        assert record["projection"].at(step) == pytest.approx(float(theta @ v), rel=1e-9)
        assert record["effective_step_size"].at(step) == pytest.approx(abs(float(sizes @ v)), rel=1e-6)
        expected = float(slope / curvature) if curvature > 0 else np.nan
        assert record["floor_distance"].at(step) == pytest.approx(expected, rel=1e-6, nan_ok=True)
        theta = theta - sizes * first / (1 - 0.9 ** (step + 1))
    assert np.isfinite(record["floor_distance"].values).any()


def test_step_sizes_are_those_of_the_parameters_that_train(tmp_path, direction, monkeypatch):
    def frozen_below(*arguments, **named):
        model = mlp(*arguments, **named)
        model[1].requires_grad_(False)
        return model

    monkeypatch.setattr("opposing_signals.models.mlp", frozen_below)
    config = with_direction(tmp_path, direction[8:], "mlp5k_adam", "batch=6", f"optimizer.lr={ETA}")
    record = recorded(config)
    (optimizer,) = torch.load(record.checkpoint, weights_only=True)["optimizer_states"]
    moments = torch.cat([state["exp_avg_sq"].flatten() for state in optimizer["state"].values()])
    sizes = ETA / ((moments / (1 - 0.999**STEPS)).sqrt() + 1e-8)
    expected = abs(float(sizes @ torch.from_numpy(direction[8:]).double()))
    assert record["effective_step_size"].at(STEPS - 1) == pytest.approx(expected, rel=1e-9)


def test_an_eigenvector_of_another_model_is_refused(tmp_path, direction):
    config = with_direction(tmp_path, direction[:-2], "mlp5k_sgd", "batch=6")
    with pytest.raises(
        InputError, match=rf"eigenvector of {PARAMETERS - 2} entries, and this run's model has {PARAMETERS}"
    ):
        recorded(config)


def test_a_reference_that_never_reached_the_edge_is_refused(tmp_path):
    config = with_direction(tmp_path, None, "mlp5k_sgd", "batch=6")
    with pytest.raises(InputError, match=r"the reference, ended before λ reached 2/η.*set more steps"):
        recorded(config)


def test_effective_step_sizes_of_another_rule_are_refused(tmp_path, direction):
    added = "+instruments.effective_step_size._target_=opposing_signals.instruments.projection.EffectiveStepSize"
    config = with_direction(tmp_path, direction, "mlp5k_sgd", "batch=6", added)
    with pytest.raises(InputError, match="EffectiveStepSize: the optimizer is SGD: expected Adam"):
        recorded(config)


def test_a_projection_without_a_reference_is_refused(tmp_path):
    added = "+instruments.projection._target_=opposing_signals.instruments.projection.Projection"
    config = composed("fig03_chebyshev", added, "steps=2", "threads=1", output_dir=tmp_path)
    with pytest.raises(InputError, match="Projection: the run has no reference"):
        recorded(config)
