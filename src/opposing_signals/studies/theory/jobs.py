"""The computations of §3.3 as jobs: each fills the record of one run from the field ``theory`` of its configuration."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping
from logging import getLogger
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from opposing_signals.configuration import refuse_seed
from opposing_signals.errors import InputError, TrainingStoppedError
from opposing_signals.provenance import recording
from opposing_signals.record import Record, quantities
from opposing_signals.studies.theory import deep, toy
from opposing_signals.studies.theory.exact import fast_phase, step_sizes
from opposing_signals.studies.theory.flow import gradient_descent, gradient_flow
from opposing_signals.studies.theory.model import (
    TheoremConditionWarning,
    TwoLayerModel,
    group_losses,
    initial_state,
    sharpness,
)
from opposing_signals.studies.theory.theorems import check_grid
from opposing_signals.values import Count, Positive, expect

log = getLogger(__name__)

PATH_FIELDS = ("t", quantities.SHARPNESS, "b_o", "c_squared", "b_squared", "o_bound")
"""The rows of the quantity ``path``, each over the times of one trajectory of gradient flow."""
LARGEST = 1e12
"""Largest α, k or ratio of a grid: beyond it the first phase is shorter than float64 resolves within the second."""


def toy_valley(config: DictConfig, record: Record, logger: Any) -> None:  # noqa: ARG001 (jobs have one signature)
    """Gradient descent on the toy valley of figure 4 while the feature's magnitude grows.

    ``theory``: ``share`` of planes, first weight ``start``, ``magnitudes`` before and after, and the numbers of steps
    ``settle`` in the first valley, ``sharpen`` on the way (evenly in the logarithm) and ``stay`` in the second.

    Records for each step the weight ``w``, the ``minimum`` and the ``magnitude`` with which it is taken,
    ``group_loss`` ``[2]`` of planes and others, ``train_loss``, and as ``sharpness`` the curvature at the minimum.
    """
    refuse_seed(config)
    theory = _part(config, "theory")
    with recording(record, {"name": "toy valley of figure 4"}):
        before, after = (_checked(_part(theory, "magnitudes"), name, Positive) for name in ("before", "after"))
        settle, sharpen, stay = (_checked(theory, name, Count) for name in ("settle", "sharpen", "stay"))
        ramp = np.geomspace(before, after, sharpen + 2)[1:-1]
        magnitudes = np.concatenate([np.full(settle, before), ramp, np.full(stay, after)])
        share = _checked(theory, "share", float)
        path = toy.descend(float(_checked(theory, "start", float)), _step_size(config), magnitudes, share)
        rows = {
            quantities.WEIGHT: path.w[:-1],
            quantities.MAGNITUDE: magnitudes,
            quantities.MINIMUM: toy.minimum(magnitudes, share),
            quantities.GROUP_LOSS: np.stack([path.losses.plane, path.losses.other], axis=1),
            quantities.TRAIN_LOSS: path.losses.average,
            quantities.SHARPNESS: toy.curvature(magnitudes, share),
        }
        for quantity, values in rows.items():
            record.extend(quantity, np.arange(len(magnitudes)), np.asarray(values))


def linear_descent(config: DictConfig, record: Record, logger: Any) -> None:  # noqa: ARG001
    """Gradient descent on the population loss of the two-layer model.

    ``theory``: the fields of `TwoLayerModel`. Records for each step ``train_loss``, ``group_loss`` ``[3]`` of outliers
    with signal + and −, and of all other points, ``sharpness``, ``projection`` (``b_o`` along the signal, with its
    sign), ``log_projection`` (the logarithm of its size, also where that underflows) and ``second_layer``.
    """
    refuse_seed(config)
    with recording(record, {"name": "population of the model of §3.3"}):
        model = _model(_part(config, "theory"))
        step_size, steps = _step_size(config), _checked(config, "steps", Count)
        path = gradient_descent(model.alpha, model.beta_norm, initial_state(model), step_size, steps)
        finite = np.isfinite(path.loss) & np.isfinite(path.sharpness)
        with np.errstate(over="ignore", invalid="ignore"):
            groups = np.stack(np.broadcast_arrays(*group_losses(path.states, model)), axis=-1)
        rows = {
            quantities.TRAIN_LOSS: path.loss,
            quantities.GROUP_LOSS: groups,
            quantities.SHARPNESS: path.sharpness,
            quantities.PROJECTION: path.states.b_o,
            quantities.LOG_PROJECTION: path.log_b_o,
            quantities.SECOND_LAYER: path.states.c,
        }
        taken = len(finite) if finite.all() else int(np.argmin(finite))
        for quantity, values in rows.items():
            record.extend(quantity, np.arange(taken), np.asarray(values)[:taken])
        _stop_unless(bool(finite.all()), int(np.argmin(finite)), record)


def sampled_descent(config: DictConfig, record: Record, logger: Any) -> None:  # noqa: ARG001
    """Gradient descent on points drawn from the model, with any number of layers, under square or logistic loss.

    ``theory``: the fields of `TwoLayerModel`, ``points``, ``layers`` and ``loss``. Records for each step
    ``train_loss``, ``group_loss`` ``[3]`` as `linear_descent` does, ``sharpness``, ``projection`` and
    ``scalar_layers`` ``[L − 1]``; under square loss also ``flow_sharpness``, λ at the end of gradient flow from the
    same start on the same points.
    """
    theory = _part(config, "theory")
    points, layers = (_checked(theory, name, Count) for name in ("points", "layers"))
    loss = _checked(theory, "loss", deep.Loss)
    name = f"{points} points of the model of §3.3" + (" with labels" if loss == "logistic" else "")
    with recording(record, {"name": name, "examples": points}):
        model = _model(theory, but=("points", "layers", "loss"))
        problem = deep.sample_problem(model, points, np.random.default_rng(config.seed), loss, layers)
        members = [problem.signs == sign for sign in (1, -1, 0)]
        if not all(group.any() for group in members[:2]):
            raise InputError(f"theory.points={points}: no outlier of one sign was drawn; draw more points")
        step_size, steps = _step_size(config), _checked(config, "steps", Count)
        start = deep.initial_parameters(model, layers)
        step = -1
        for step, (theta, at) in enumerate(deep.descend(start, problem, step_size, steps)):
            record.append(quantities.TRAIN_LOSS, step, at.losses.mean())
            record.append(quantities.GROUP_LOSS, step, np.array([_mean(at.losses[group]) for group in members]))
            record.append(quantities.SHARPNESS, step, np.linalg.eigvalsh(at.hessian)[-1])
            record.append(quantities.PROJECTION, step, theta[: len(problem.direction)] @ problem.direction)
            record.append(quantities.SCALAR_LAYERS, step, theta[len(problem.direction) :])
        _stop_unless(step == steps, step + 1, record)
        if loss == "square":
            # The slowest rate at the end is at least that of w off β, C² = ‖β‖^{2(L−1)/L}; reaching the end takes
            # longer the more layers grow together.
            horizon = 20.0 * layers / model.beta_norm ** (2 / layers)
            end = deep.flow_end(start, problem, horizon)
            record.append(quantities.FLOW_SHARPNESS, 0, np.linalg.eigvalsh(deep.evaluate(end, problem).hessian)[-1])


def theorems(config: DictConfig, record: Record, logger: Any) -> None:  # noqa: ARG001
    """Theorems 3.1 and 3.2 over a grid of models, along single trajectories, and under gradient descent.

    ``theory.grid`` (``d1``, ``samples``; ``alpha`` and ``k`` each by ``low``, ``high`` and ``points``, evenly in the
    logarithm; ``beta_norm`` as a list) gives the quantities ``grid`` (fields alpha, k, beta_norm), ``measured``,
    ``bound``, ``holds`` (fields: the statements of `check_grid`) and ``conditions``, arrays ``[‖β‖, α, k]`` at step 0.
    ``theory.paths`` (fields of the model, with a list of ``alpha``) gives ``path`` ``[6, T]``, rows `PATH_FIELDS`, and
    ``path_times`` (turn of c, minimum of λ), trajectory i at step i. ``theory.descent`` (fields of the model,
    ``steps``, ``ratios``) gives ``descent_ratio``, ``descent_log_b_o``, ``descent_sign`` and ``descent_eta_lambda``
    (ηλ), for the step size of the i-th ratio to 2/(α‖β‖) at step i.
    """
    refuse_seed(config)
    theory = _part(config, "theory")
    with recording(record, {"name": "population of the model of §3.3"}):
        _record_grid(record, _part(theory, "grid"))
        _record_paths(record, _part(theory, "paths"))
        _record_descents(record, _part(theory, "descent"))


def _record_grid(record: Record, grid: DictConfig) -> None:
    alpha, k = (_axis(grid, name) for name in ("alpha", "k"))
    d1, samples = (_checked(grid, name, Count) for name in ("d1", "samples"))
    # One ‖β‖ at a time: the trajectories of a whole grid take gigabytes.
    checks = [check_grid(alpha[:, None], k[None, :], norm, d1, samples) for norm in _axis(grid, "beta_norm")]
    below = sum(np.count_nonzero(~check.conditions["beta"]) for check in checks)
    if below:
        log.warning(
            "beta_norm is below max(d1/sqrt(d1+d2), 24/5), the condition of theorems 3.1 and 3.2, at %d of %d models; "
            "their statements need not hold there",
            below,
            sum(check.alpha.size for check in checks),
        )

    axes = [{"alpha": check.alpha, "k": check.k, "beta_norm": check.beta_norm} for check in checks]
    record.append(quantities.GRID, 0, _stacked(axes))
    record.append(quantities.CONDITIONS, 0, _stacked([check.conditions for check in checks]))
    for part in ("measured", "bound", "holds"):
        statements = [{name: getattr(s, part) for name, s in check.statements.items()} for check in checks]
        record.append(part, 0, _stacked(statements))


def _record_paths(record: Record, paths: DictConfig) -> None:
    samples = _checked(paths, "samples", Count)
    for index, alpha in enumerate(_axis(paths, "alpha").tolist()):
        model = _model({**paths, "alpha": alpha}, but=("samples",))
        path = gradient_flow(model)
        first = 1e-2 / model.alpha
        t = np.concatenate([[0.0], np.geomspace(first, path.t[-1], samples - 1)])
        state = path.at(t)
        values = sharpness(state, model.alpha, model.beta_norm)
        _, o_bound = fast_phase(t, model.alpha, model.k)
        rows = (t, values, np.abs(state.b_o), np.square(state.c), state.b_squared, o_bound)
        record.append(quantities.PATH, index, np.stack(rows))
        record.append(quantities.PATH_TIMES, index, np.array([path.turn_time or 0.0, path.minimum_sharpness_time]))


def _record_descents(record: Record, descent: DictConfig) -> None:
    model = _model(descent, but=("steps", "ratios"))
    ratios, steps = _axis(descent, "ratios"), _checked(descent, "steps", Count)
    edge = step_sizes(model.alpha, model.beta_norm).edge
    path = gradient_descent(model.alpha, model.beta_norm, initial_state(model), ratios * edge, steps)
    signs = np.nan_to_num(np.sign(path.states.b_o)).astype(np.int8)  # 0 once it has diverged
    for index, ratio in enumerate(ratios):
        record.append(quantities.DESCENT_RATIO, index, ratio)
        record.append(quantities.DESCENT_LOG_B_O, index, path.log_b_o[:, index])
        record.append(quantities.DESCENT_SIGN, index, signs[:, index])
        record.append(quantities.DESCENT_ETA_LAMBDA, index, ratio * edge * path.sharpness[:, index])


def _stacked(parts: list[dict[str, np.ndarray]]) -> np.ndarray:
    """A structured array ``[len(parts), ...]`` with the fields of the parts."""
    first = parts[0]
    shape = (len(parts), *next(iter(first.values())).shape)
    stacked = np.empty(shape, np.dtype([(name, value.dtype) for name, value in first.items()]))
    for row, part in enumerate(parts):
        for name, value in part.items():
            stacked[name][row] = value
    return stacked


def _axis(node: DictConfig, name: str) -> np.ndarray:
    """The numbers of ``node[name]``: a list, or evenly in the logarithm by ``low``, ``high`` and ``points``."""
    axis = node.get(name)
    if not OmegaConf.is_dict(axis):
        if not OmegaConf.is_list(axis) or not axis:
            raise InputError(f"{name}={axis}: expected a list of one or more numbers, or low, high and points")
        expect(name, OmegaConf.to_container(axis), list[float])
        return np.array(axis, dtype=float)
    low, high = (float(_checked(axis, end, float)) for end in ("low", "high"))
    if not 0 < low <= high <= LARGEST:
        raise InputError(f"{name}: from {low:g} to {high:g}: expected 0 < low <= high <= {LARGEST:g}")
    return np.geomspace(low, high, _checked(axis, "points", Count))


def _model(node: Mapping[Any, Any], but: Collection[str] = ()) -> TwoLayerModel:
    """The model with the fields of ``node`` except ``but``; values outside the theorems' conditions are logged."""
    fields = {str(name): value for name, value in node.items() if name not in but}
    try:
        inspect.signature(TwoLayerModel).bind(**fields)
    except TypeError as error:
        known = ", ".join(TwoLayerModel.__dataclass_fields__)
        raise InputError(f"theory: {error}; expected {known} (the last two have defaults)") from None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TheoremConditionWarning)
        model = TwoLayerModel(**fields)
    for warning in caught:
        log.warning("%s", warning.message)
    return model


def _checked(node: DictConfig, name: str, kind: Any) -> Any:
    """``node[name]``, which must be of a type of `opposing_signals.values`."""
    expect(node._get_full_key(name), node.get(name), kind)
    return node[name]


def _part(node: DictConfig, name: str) -> DictConfig:
    """``node[name]``, which must hold fields."""
    if not OmegaConf.is_dict(part := node.get(name)):
        where = node._get_full_key(name)
        raise InputError(f"{where}={part}: expected fields, as in {where}.FIELD=VALUE")
    return part


def _step_size(config: DictConfig) -> float:
    return float(_checked(_part(config, "optimizer"), "lr", Positive))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _stop_unless(finished: bool, step: int, record: Record) -> None:
    if not finished:
        reason = f"the loss is not finite at step {step}"
        record.write_state(f"stopped: {reason}")
        raise TrainingStoppedError(reason)
