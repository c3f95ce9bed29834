"""λ along a run of gradient descent at the edge of stability: its cost for the run, its accuracy, and the cost of a
value by other tools.

Several complete runs of `opposing-signals`, including Lightning and the record, alternate in blocks of steps. They
start from one checkpoint, and θ_t is bit-identical in all of them.
"""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import peers
import torch
from measuring import LAYOUTS, Case, fastest, interleaved, milliseconds, plain, products, spread, table, target
from torch import Tensor

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.training.job import train
from opposing_signals.training.module import TrainingModule

SHARPNESS = "opposing_signals.instruments.sharpness.Sharpness"
OURS = "every step, tolerance 0.05"
ACCURATE = "every step, tolerance 0.03"
STRIDE = "stride 5, tolerance 0.05"
SETTINGS: dict[str, dict[str, Any]] = {
    OURS: {},
    ACCURATE: {"tolerance": 0.03},
    STRIDE: {"every": 5},
}
"""Fields of the instrument that differ from its defaults."""

TIMES_OURS = {"curvlinops + eigsh": 20, "edge-of-stability code": 20, "PyHessian": 5, "hessian-eigenthings": 5}
"""Minimum time of each tool for a value, over ours."""

ERRORS = ("median error", "95%", "largest", "n")
BOUNDS = ("bound over λ", "not covered")
"""The second: among values that err by more than `_FAR`, the number whose bound lies below the true λ."""
_FAR = 0.05


# -- instruments ------------------------------------------------------------------------------------------------


class Clock(Instrument):
    """Records the CPU time at which each step of a block began, and the last one ended."""

    ticks: ClassVar[list[float]] = []

    def before_step(self, module: TrainingModule, step: int) -> None:
        self.ticks.append(time.process_time())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.ticks.append(time.process_time())


class Reference(Instrument):
    """The converged λ at chosen steps, and the values of other tools at some of them.

    In float32 the Hessian of a ReLU network depends on the layout: a ReLU's input can round to the other side of 0. So
    each tool is compared with vᵀHv in the layout that it gets, where v is the converged vector.

    Args:
        steps: Steps at which λ is computed.
        products: Maximum number of products for one λ.
        others: Those of ``steps`` at which other tools compute it.
        layouts: Layout of each tool's product, see `fastest`.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        steps: list[int],
        products: int,
        others: list[int],
        layouts: dict[str, str],
    ) -> None:
        super().__init__(risk, record)
        self.steps, self.products, self.others, self.layouts = set(steps), products, set(others), layouts
        self.vector: Tensor | None = None

    def before_step(self, module: TrainingModule, step: int) -> None:
        if step not in self.steps:
            return
        start = torch.randn(sum(p.numel() for p in self.risk.parameters), generator=torch.Generator().manual_seed(step))
        start = start / start.norm()
        if self.vector is not None:
            start = start + self.vector
        value, vector, residual = lanczos(
            lambda v: self.risk.hessian_products(v[None]).products[0], start, self.products
        )
        self.vector = vector
        self.record.append("reference", step, value)
        self.record.append("reference_residual", step, residual / abs(value))
        if step in self.others:
            for suffix in set(self.layouts.values()):
                exact = vector @ peers.double_backward(*plain(self.risk, LAYOUTS[suffix]))(vector)
                self.record.append(quantity("reference in", suffix), step, float(exact))
            for name, (_, build) in peers.EIGENVALUES.items():
                self._ask(name, build, step)

    def _ask(self, name: str, build: Callable, step: int) -> None:
        """Time another tool, without the time to build its operator."""
        layout = LAYOUTS[self.layouts[peers.EIGENVALUES[name][0]]]
        model, chunks = plain(self.risk, layout)
        compute = build(model, chunks)
        chunks.passes, started = 0, time.process_time()
        value = compute()
        seconds = time.process_time() - started
        for what, number in (("value", value), ("seconds", seconds), ("products", chunks.passes)):
            self.record.append(quantity(name, what), step, number)

    def state_dict(self) -> dict[str, Any]:
        return {"vector": self.vector}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.vector = state_dict["vector"]


def quantity(name: str, what: str) -> str:
    """A name for the record, which is also used as a file name."""
    return re.sub("[^a-z0-9]+", "_", f"{name} {what}".lower())


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, most: int) -> tuple[float, Tensor, float]:
    """Largest eigenpair by the Lanczos method with full reorthogonalization: value, vector, residual norm.

    It stops at a residual of 1e-3 of the value, where the relative error is about 1e-6 over the relative gap, or after
    ``most`` products.
    """
    basis = start.new_empty(most, len(start))
    images = torch.empty_like(basis)
    direction = start
    for count in range(1, most + 1):
        for _ in range(2):
            direction = direction - basis[: count - 1].T @ (basis[: count - 1] @ direction)
        basis[count - 1] = direction / direction.norm()
        images[count - 1] = product(basis[count - 1])
        small = (basis[:count] @ images[:count].T).double()
        values, coefficients = torch.linalg.eigh((small + small.T) / 2)
        weights = coefficients[:, -1].to(basis)
        value, vector = float(values[-1]), weights @ basis[:count]
        direction = weights @ images[:count] - value * vector
        residual = float(direction.norm())
        if residual <= 1e-3 * abs(value):
            break
    return value, vector / vector.norm(), residual


# -- runs in turn -----------------------------------------------------------------------------------------------


@dataclass
class Lane:
    """One of the runs."""

    folder: Path
    instruments: dict[str, dict[str, Any]]
    blocks: list[np.ndarray] = field(default_factory=list)  # CPU seconds of each step

    def advance(self, case: Case, steps: int) -> None:
        """Continue from the checkpoint to θ_steps."""
        config = case.configuration(steps)
        config.instruments = {
            "clock": {"_target_": "tracking.Clock"},
            **{name: config.instruments[name] for name in ("sample_losses", "train_loss")},
            **self.instruments,
        }
        Clock.ticks.clear()
        with (
            Record.writing(self.folder, {}) as record,
            redirect_stderr(io.StringIO()),
        ):  # no progress bar per block
            train(config, record, None)
        self.blocks.append(np.diff(Clock.ticks))

    @property
    def counted(self) -> np.ndarray:
        """``[blocks, steps]`` seconds, without the settling block and each block's first step."""
        return np.array([block[1:] for block in self.blocks[1:]])

    def __getitem__(self, name: str) -> dict[int, float]:
        """A quantity of the record by step."""
        series = Record(self.folder)[name]
        return dict(zip(series.steps.tolist(), np.asarray(series.values, float).tolist(), strict=True))


def warmed_up(case: Case, folder: Path) -> Path:
    """Train to the first measured step; returns the checkpoint."""
    Lane(folder / "warm_up", {}).advance(case, case.warm_up)
    return folder / "warm_up" / "checkpoint.ckpt"


def run_in_turn(case: Case, lanes: dict[str, Lane], checkpoint: Path, block: int) -> None:
    """Run all lanes from the checkpoint, in turn; the settling steps are the first block."""
    for lane in lanes.values():
        shutil.copytree(checkpoint.parent, lane.folder)  # the checkpoint refers to the record beside it
    first = case.warm_up + case.settle
    for steps in range(first, first + case.steps + 1, block):
        for lane in lanes.values():
            lane.advance(case, steps)
    losses = lanes["no λ"]["train_loss"]
    assert all(lane["train_loss"] == losses for lane in lanes.values()), "λ changed the run that it measures"


# -- sections ---------------------------------------------------------------------------------------------------


def tracking(case: Case, sections: set[str], folder: Path, checkpoint: Path, most: int, block: int) -> None:
    """The sections ``tracking`` and ``peers``, which share their runs; at most ``most`` products per reference."""
    case.steps -= case.steps % block
    first = case.warm_up + case.settle
    # A stride of 5 measures the steps with t mod 5 = 0; equally many other steps represent the rest.
    compared = thinned([t for t in range(first, first + case.steps) if t % 5 in (0, 2)], case.references)
    others = thinned(compared, case.values) if "peers" in sections else []
    settings = {OURS: SETTINGS[OURS]}
    if "tracking" in sections:
        settings = SETTINGS
    lanes = {"no λ": Lane(folder / "none", {})}
    for name, fields in settings.items():
        lanes[name] = Lane(folder / quantity(name, "run"), {"sharpness": {"_target_": SHARPNESS, **fields}})
    reference = {
        "_target_": "tracking.Reference",
        "steps": compared,
        "products": most,
        "others": others,
        "layouts": layouts(case, checkpoint) if others else {},
    }
    lanes["reference"] = Lane(folder / "reference", {"reference": reference})
    run_in_turn(case, lanes, checkpoint, block)
    truth = lanes["reference"]["reference"]
    edge = np.array(list(truth.values())) * case.lr / 2
    print(
        f"\nλ over 2/η at the {len(edge)} references: {edge.min():.2f} to {edge.max():.2f}, median "
        f"{np.median(edge):.2f}; relative residual at most {max(lanes['reference']['reference_residual'].values()):.1e}"
    )
    if "tracking" in sections:
        print_tracking(case, lanes, truth)
    if "peers" in sections:
        print_peers(lanes, truth, reference["layouts"])


def layouts(case: Case, checkpoint: Path) -> dict[str, str]:
    """For each tool's product, the layout in which it is faster on this machine."""
    risk = case.risk(checkpoint)
    vector = torch.ones(sum(p.numel() for p in risk.parameters))
    seconds = interleaved({name: partial(call, vector) for name, call in products(case, risk).items()}, 1)
    return fastest(peers.PRODUCTS, seconds)


def print_tracking(case: Case, lanes: dict[str, Lane], truth: dict[int, float]) -> None:
    base = lanes["no λ"].counted
    rows = [{"run": "no λ", "ms a step": milliseconds(base.mean()), "over no λ": "1"}]
    for name in SETTINGS:
        lane = lanes[name]
        whole, ratios = lane.counted.sum() / base.sum(), lane.counted.sum(1) / base.sum(1)
        values, spent = lane["sharpness"], lane["sharpness_products"]
        error = relative_errors(values, truth)
        of_quotient = relative_errors(lane["sharpness_quotient"], truth)
        targets = []
        if name in (OURS, STRIDE):
            targets += [target(whole, "<=", case.bounds["every step" if name == OURS else "stride"])]
        if name == OURS:
            targets += [target(np.median(error), "<", 1e-3, "median"), target(high(error), "<", 0.025, "95%")]
        if name == ACCURATE:
            targets += [target(high(error), "<", 1e-3, "95%")]
        rows.append(
            {
                "run": name,
                "ms a step": milliseconds(lane.counted.mean()),
                "over no λ": f"{whole:.2f}",
                "blocks": spread(ratios),
                "products a λ": f"{np.mean([spent[t] for t in spent if t >= case.warm_up + case.settle]):.1f}",
                **of_errors(error),
                "vᵀHv: median": f"{np.median(of_quotient):.1e}" if len(of_quotient) else "",
                **of_bounds(lane["sharpness_bound"], values, truth),
                "target": "; ".join(targets),
            }
        )
        if SETTINGS[name].get("every", 1) > 1:
            held = {t: values[max(s for s in values if s <= t)] for t in truth if t not in values}
            rows.append({"run": "  steps between, last λ held", **of_errors(relative_errors(held, truth))})
    columns = ("run", "ms a step", "over no λ", "blocks", "products a λ", *ERRORS, "vᵀHv: median", *BOUNDS, "target")
    table("tracking", columns, rows)


def print_peers(lanes: dict[str, Lane], truth: dict[int, float], layouts: dict[str, str]) -> None:
    """Print time and error of one value; ours is what λ adds to a step."""
    lane = lanes["reference"]
    ours = (lanes[OURS].counted - lanes["no λ"].counted).mean()
    our_errors = relative_errors(lanes[OURS]["sharpness"], truth)
    spent = np.mean(list(lanes[OURS]["sharpness_products"].values()))
    rows = [{"λ by": f"ours, {OURS}", "s a value": f"{ours:.4f}", "over ours": "1", "products a λ": f"{spent:.1f}"}]
    rows[0] |= of_errors(our_errors)
    for name, (product, _) in peers.EIGENVALUES.items():
        suffix = layouts[product]
        seconds = np.array(list(lane[quantity(name, "seconds")].values()))
        error = relative_errors(lane[quantity(name, "value")], lane[quantity("reference in", suffix)])
        targets = [target(np.median(seconds) / ours, ">=", TIMES_OURS[name])]
        if name == "PyHessian":
            targets += [target(np.median(our_errors), "<", np.median(error), "our median error")]
        rows.append(
            {
                "λ by": name + suffix,
                "s a value": f"{np.median(seconds):.4f}",
                "over ours": spread(seconds / ours),
                "products a λ": f"{np.mean(list(lane[quantity(name, 'products')].values())):.1f}",
                **of_errors(error),
                "target": "; ".join(targets),
            }
        )
    table("peers", ("λ by", "s a value", "over ours", "products a λ", *ERRORS, "target"), rows)


def thinned(values: list[int], most: int) -> list[int]:
    """At most ``most`` of the values, evenly spaced."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).astype(int))]


def relative_errors(values: dict[int, float], truth: dict[int, float]) -> np.ndarray:
    """Relative errors at the steps in both."""
    return np.array([abs(values[t] - truth[t]) / abs(truth[t]) for t in truth if t in values])


def high(errors: np.ndarray) -> float:
    return float(np.percentile(errors, 95))


def of_errors(errors: np.ndarray) -> dict[str, str]:
    """Table cells on errors."""
    if not len(errors):
        return {"n": "0"}
    cells = (f"{np.median(errors):.1e}", f"{high(errors):.1e}", f"{errors.max():.1e}", str(len(errors)))
    return dict(zip(ERRORS, cells, strict=True))


def of_bounds(bounds: dict[int, float], values: dict[int, float], truth: dict[int, float]) -> dict[str, str]:
    """Table cells on bounds."""
    shared = [t for t in truth if t in values and np.isfinite(bounds[t])]
    if not shared:
        return {}
    far = [t for t in shared if abs(values[t] / truth[t] - 1) > _FAR and bounds[t] < truth[t]]
    return dict(zip(BOUNDS, (spread([bounds[t] / truth[t] for t in shared]), str(len(far))), strict=True))
