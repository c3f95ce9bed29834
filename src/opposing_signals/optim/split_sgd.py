"""SplitSGD: gradient steps on parameters with small gradients, signed steps on the others (Appendix F)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from opposing_signals.errors import TrainingStoppedError
from opposing_signals.optim.groups import DECAY, NOT_NEGATIVE, Group, Rule, called, momentum_buffers, with_gradient
from opposing_signals.optim.quantile import magnitude_quantile
from opposing_signals.values import Decay, Fraction, NotNegative, Positive, Range

_GRAIN = 32_768  # entries that torch gives to one thread; with all of the rule's buffers they fit a core's cache

Tensors = list[Tensor]


class SplitSGD(Rule):
    """Algorithm 1 of Rosenfeld and Risteski 2024. With g the gradient and initially m = 0, step t is::

        m ← β m + (1 − τ) g;  m̂ = m / (1 − τ^t)
        θ ← θ − η1 m̂ where |m̂| <= r, and θ − η2 sign(m̂) elsewhere

    Two unrelated methods have the same name: SplitSGD of Sordello, Dalmasso, He and Su (2019, "Robust learning rate
    selection for stochastic optimization via splitting diagnostic"), which lowers the learning rate where two threads
    of SGD disagree, and Split SGD of Kalamkar et al. 2020 for recommender systems, which stores the two halves of each
    float32 weight's bits separately.

    Both step sizes must be given by name, because a reader of Algorithm 1 may take the first for η1. ``lr``, which
    PyTorch's schedulers scale, is η2, the counterpart of Adam's ``lr``, about which Adam moves a parameter too; η1 is
    ``sgd_lr``. `torch.optim.SGD` with dampening is not this rule with r = ∞: its buffer starts with the undampened g_1,
    and it does not divide by 1 − τ^t.

    t is counted per parameter. A step in which a parameter has no gradient does not count, as in torch's Adam. Momenta,
    counts and the threshold are in `state_dict`.

    Args:
        params: As for any torch optimizer; a group can set any of the numbers below.
        lr: η2, the size of signed steps.
        sgd_lr: η1, the size of the other steps; 0 leaves those parameters unchanged.
        momentum: β.
        dampening: τ.
        threshold: r; None takes ``quantile`` of the magnitudes of the first gradient, over all parameters.
        quantile: Determines r if it is None.
        foreach: Update many tensors per call. False: one after another, as the rule is written.
        fused: Update by one kernel that `torch.compile` writes at the first step; it needs a C++ compiler on a CPU.

    Raises:
        InputError: A step size or r is negative, β or τ outside [0, 1), or the quantile outside (0, 1).
        TrainingStoppedError: In `step`, r is to be taken from a gradient that is not finite.
        RuntimeError: In `step`, a gradient is sparse.
    """

    ranges = MappingProxyType(
        {
            **dict.fromkeys(("lr", "sgd_lr", "threshold"), NOT_NEGATIVE),
            **dict.fromkeys(("momentum", "dampening"), DECAY),
            "quantile": Range(0, 1, above=True, below=True),
        }
    )

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: Positive,
        sgd_lr: NotNegative,
        momentum: Decay = 0.9,
        dampening: Decay = 0.9,
        threshold: NotNegative | None = None,
        quantile: Fraction = 0.1,
        foreach: bool = True,
        fused: bool = False,
    ) -> None:
        numbers = {"lr": lr, "sgd_lr": sgd_lr, "momentum": momentum, "dampening": dampening}
        split = {"threshold": threshold, "quantile": quantile}
        super().__init__(params, {**numbers, **split, "foreach": foreach, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = called(closure)
        self._take_thresholds()
        for group in self.param_groups:
            update = _fused if group["fused"] else _foreach if group["foreach"] else _one_by_one
            parameters, gradients = with_gradient(group)
            momenta = momentum_buffers(self, parameters)
            alike: dict[tuple[Any, ...], tuple[Tensors, Tensors, Tensors]] = defaultdict(lambda: ([], [], []))
            for row in zip(parameters, gradients, momenta, strict=True):
                state = self.state[row[0]]
                state["step"] = state.get("step", 0) + 1
                for column, tensor in zip(alike[state["step"], row[0].dtype, row[0].device], row, strict=True):
                    column.append(tensor)
            for (step, dtype, _), columns in alike.items():
                update(*columns, _factors(group, step, dtype))
        return loss

    @property
    def signed_share(self) -> Tensor:
        """``[]``, the fraction of parameters that the last step moved by a signed step; nan before the first.

        It is computed on access, from the momenta, and stays on their device.
        """
        counts, entries = [], 0
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "step" in state:
                    limit = _factors(group, state["step"], parameter.dtype).limit
                    counts.append((state["momentum_buffer"].abs() > limit).count_nonzero())
                    entries += parameter.numel()
        if not counts:
            return torch.tensor(math.nan)
        return torch.stack([count.to(counts[0].device) for count in counts]).sum() / entries

    def _take_thresholds(self) -> None:
        waiting = [group for group in self.param_groups if group["threshold"] is None]
        gradients = [gradient for group in waiting for gradient in with_gradient(group)[1]]
        if not gradients:
            return
        for quantile in {group["quantile"] for group in waiting}:
            threshold = magnitude_quantile(gradients, quantile)
            if not math.isfinite(threshold):
                raise TrainingStoppedError("the first gradient, of which SplitSGD takes its threshold, is not finite")
            for group in waiting:
                if group["quantile"] == quantile:
                    group["threshold"] = threshold


class _Factors(NamedTuple):
    """Factors of one step: the limit on |m|, η1 / (1 − τ^t), η2, β and 1 − τ."""

    limit: float
    plain: float
    signed: float
    kept: float
    added: float


def _factors(group: Group, step: int, dtype: torch.dtype) -> _Factors:
    """Factors of the t-th step of a group.

    |m̂| <= r is |m| <= r (1 − τ^t), so m̂ need not be formed. The limit is rounded to the parameters' dtype, so that
    every path compares with the same number.
    """
    debias = 1 - group["dampening"] ** step
    limit = float(torch.tensor(min(group["threshold"] * debias, torch.finfo(dtype).max), dtype=dtype))
    return _Factors(limit, group["sgd_lr"] / debias, group["lr"], group["momentum"], 1 - group["dampening"])


def _one_by_one(parameters: Tensors, gradients: Tensors, momenta: Tensors, factors: _Factors) -> None:
    """The rule as written. A nan is not larger than the limit, and so reaches its parameter."""
    limit, plain, signed, kept, added = factors
    for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
        momentum.mul_(kept).add_(gradient * added)
        parameter.sub_(torch.where(momentum.abs() > limit, momentum.sign() * signed, momentum * plain))


def _foreach(parameters: Tensors, gradients: Tensors, momenta: Tensors, factors: _Factors) -> None:
    """The rule in torch's operations on many tensors at once.

    With c = clamp(m, ± limit), the sign of m − c is that of m where |m| > limit, and 0 elsewhere. Where it is not 0,
    c − limit x sign is exactly 0; elsewhere it is m.
    """
    limit, plain, signed, kept, added = factors
    for theta, slopes, averages in _blocks(parameters, gradients, momenta):
        torch._foreach_mul_(averages, kept)
        torch._foreach_add_(averages, slopes, alpha=added)
        small = torch._foreach_clamp_max(averages, limit)
        torch._foreach_clamp_min_(small, -limit)
        signs = torch._foreach_sub(averages, small)
        torch._foreach_sign_(signs)
        torch._foreach_add_(small, signs, alpha=-limit)
        torch._foreach_add_(theta, small, alpha=-plain)
        torch._foreach_add_(theta, signs, alpha=-signed)


def _blocks(*lists: Tensors) -> Iterator[list[Tensors]]:
    """On a CPU, pieces that stay in its cache from one operation to the next: memory bandwidth limits a step."""
    if lists[0][0].device.type != "cpu":
        yield list(lists)
        return
    size = _GRAIN * torch.get_num_threads()
    block: list[tuple[Tensor, ...]] = []
    entries = 0
    for tensors in zip(*lists, strict=True):
        is_divided = tensors[0].numel() > size and all(tensor.is_contiguous() for tensor in tensors)
        pieces = zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True) if is_divided else [tensors]
        for piece in pieces:
            if block and entries + piece[0].numel() > size:
                yield [list(column) for column in zip(*block, strict=True)]
                block, entries = [], 0
            block.append(piece)
            entries += piece[0].numel()
    yield [list(column) for column in zip(*block, strict=True)]


@cache
def _compiled() -> Callable[[Tensors, Tensors, Tensors, _Factors], None]:
    """The compiled rule, made on first use: torch imports its compiler for it, which takes a second."""
    return torch.compile(_one_by_one, dynamic=False)


def _fused(parameters: Tensors, gradients: Tensors, momenta: Tensors, factors: _Factors) -> None:
    """The rule as one kernel. Factors are passed as tensors: numbers would be compiled in, but change each step."""
    as_tensor = torch.tensor(factors, dtype=parameters[0].dtype).to(parameters[0].device, non_blocking=True)
    # torch 2.13 loses what a compiled function writes into a CPU tensor without axes
    parameters, gradients, momenta = (
        [tensor if tensor.ndim else tensor.view(1) for tensor in tensors]
        for tensors in (parameters, gradients, momenta)
    )
    _compiled()(parameters, gradients, momenta, _Factors(*cast(Any, as_tensor.unbind())))
