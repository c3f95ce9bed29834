"""Other tools that measure curvature or per-sample gradients, on the model, chunks and loss of `curvature.py`.

Each tool is used as its documentation shows. Changes that a tool requires are made to a copy of the model and are not
timed.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from opposing_signals._torchvision import make_importable

warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph")  # used by PyHessian
warnings.filterwarnings("ignore", message="Full backward hook is firing")  # opacus on the first layer
warnings.filterwarnings("ignore", message="Extension saving to")  # BackPACK on modules made of modules
warnings.filterwarnings("ignore", message="There is a performance drop")  # curvlinops in channels_last

make_importable()
BasicBlock = importlib.import_module("torchvision.models.resnet").BasicBlock


def _why_not(package: str) -> str:
    try:
        importlib.import_module(package)
    except Exception as error:  # a package made for another torch can fail in any way
        return f"{type(error).__name__}: {error} (pip install '.[bench]')"
    return ""


PACKAGES = ("curvlinops", "pyhessian", "hessian_eigenthings", "opacus", "backpack")
MISSING = {package: reason for package in PACKAGES if (reason := _why_not(package))}
"""Package ↦ why it does not load."""


class Chunks:
    """(inputs, targets) pairs that count how often they are iterated over: once per product."""

    def __init__(self, inputs: Tensor, targets: Tensor, chunk: int) -> None:
        self.pairs = list(zip(inputs.split(chunk), targets.split(chunk), strict=True))
        self.examples = len(inputs)
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        return iter(self.pairs)


# -- Hessian-vector products ------------------------------------------------------------------------------------


def without_statistics(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy without running statistics: in training mode they do not enter the loss, and `vmap` refuses them."""
    model = copy.deepcopy(model).to(memory_format=layout)
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def double_backward(model: nn.Module, chunks: Chunks) -> Callable[[Tensor], Tensor]:
    """PyTorch's double backward: differentiate the gradient once more, chunk by chunk (Pearlmutter 1994)."""
    parameters = list(model.parameters())

    def product(vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in parameters])
        direction = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        total = torch.zeros_like(vector)
        for inputs, targets in chunks:
            loss = F.cross_entropy(model(inputs), targets, reduction="sum") / chunks.examples
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            total += torch.cat([row.reshape(-1) for row in torch.autograd.grad(slopes, parameters, direction)])
        return total

    return product


def _curvlinops_operator(model: nn.Module, chunks: Chunks) -> Any:
    """curvlinops (Dangel et al.): dual numbers through reverse mode."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        chunks,
        check_deterministic=False,
        num_data=chunks.examples,
    )


def curvlinops_product(model: nn.Module, chunks: Chunks) -> Callable[[Tensor], Tensor]:
    operator = _curvlinops_operator(model, chunks)
    return lambda vector: operator @ vector


# -- the largest eigenvalue -------------------------------------------------------------------------------------


def edge_of_stability(model: nn.Module, chunks: Chunks) -> Callable[[], float]:
    """The method of the code of Cohen et al. 2021 (github.com/locuslab/edge-of-stability), written anew.

    SciPy's eigsh with its defaults (cold start, machine precision) on double backward in float32; the operator is built
    for each value, and SciPy spends one product to find its dtype.
    """
    size = sum(p.numel() for p in model.parameters())
    product = double_backward(model, chunks)

    def value() -> float:
        operator = LinearOperator((size, size), lambda v: product(torch.tensor(v, dtype=torch.float32)).numpy())
        return float(eigsh(operator, 1, return_eigenvectors=False)[-1])

    return value


def curvlinops_eigsh(model: nn.Module, chunks: Chunks) -> Callable[[], float]:
    """SciPy's eigsh, to the precision of float32."""
    operator = _curvlinops_operator(model, chunks).to_scipy(dtype=np.float32)
    return lambda: float(eigsh(operator, k=1, which="LA", return_eigenvectors=False)[-1])


def pyhessian(model: nn.Module, chunks: Chunks) -> Callable[[], float]:
    """PyHessian (Yao et al. 2020): power iteration until two values differ by less than 0.1%."""
    from pyhessian import hessian

    was_training = model.training
    solver = hessian(model, nn.CrossEntropyLoss(), dataloader=chunks, cuda=False)
    model.train(was_training)  # PyHessian switches to evaluation mode, which changes the loss
    return lambda: solver.eigenvalues()[0][0]


def hessian_eigenthings(model: nn.Module, chunks: Chunks) -> Callable[[], float]:
    """pytorch-hessian-eigenthings (Golmant et al. 2018): twenty Lanczos steps for ten eigenvalues.

    It averages over chunks with equal weights, so they should have equal sizes.
    """
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    operator = HessianOperator(model, chunks, supervised_loss(F.cross_entropy))
    return lambda: float(lanczos(operator).eigenvalues[0])


# -- gradient norms of all points -------------------------------------------------------------------------------


class _Affine(nn.Module):
    """Batch norm with constant statistics for opacus, which refuses `nn.BatchNorm2d` and any layer with buffers."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.mean, self.variance = norm.running_mean.clone(), norm.running_var.clone()

    def forward(self, values: Tensor) -> Tensor:
        return F.batch_norm(values, self.mean, self.variance, self.weight, self.bias, training=False, eps=self.eps)


def _without_writes(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy without in-place activations, which the hooks of opacus and BackPACK do not allow."""

    def forward(block: nn.Module, values: Tensor) -> Tensor:
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(values)))))
        return block.relu(out + (values if block.downsample is None else block.downsample(values)))

    model = copy.deepcopy(model).to(memory_format=layout)
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, BasicBlock):
            module.forward = MethodType(forward, module)
    return model


def _with_affine(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _Affine(child))
        else:
            _with_affine(child)
    return model


def vmap_norms(model: nn.Module, chunks: Chunks, layout: torch.memory_format) -> Callable[[], Tensor]:
    """`torch.func`: every per-sample gradient, then its norm."""
    model = copy.deepcopy(model).to(memory_format=layout)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (parameters, buffers), (inputs[None],)), target[None])

    gradients = vmap(grad(loss), (None, 0, 0))
    return lambda: torch.cat([_norms(gradients(parameters, *chunk).values()) for chunk in chunks])


def opacus_norms(model: nn.Module, chunks: Chunks, layout: torch.memory_format, ghost: bool) -> Callable[[], Tensor]:
    """opacus (Yousefpour et al. 2021): its per-sample gradients, or ghost clipping's norms without them."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    plain = _with_affine(_without_writes(model, layout)).train()
    wrapper = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
    module = wrapper(plain, strict=False, loss_reduction="sum")

    def norms() -> Tensor:
        rows = []
        for inputs, targets in chunks:
            F.cross_entropy(module(inputs), targets, reduction="sum").backward()
            rows.append(module.get_norm_sample() if ghost else _norms(p.grad_sample for p in module.parameters()))
            module.zero_grad()
        return torch.cat(rows).detach()

    return norms


def backpack_norms(model: nn.Module, chunks: Chunks, layout: torch.memory_format, ghost: bool) -> Callable[[], Tensor]:
    """BackPACK (Dangel et al. 2020): its per-sample gradients, or their squared norms without them."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad, BatchL2Grad

    module = extend(_without_writes(model, layout))
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))

    def norms() -> Tensor:
        rows = []
        for inputs, targets in chunks:
            module.zero_grad()
            with backpack(BatchL2Grad() if ghost else BatchGrad()):
                loss(module(inputs), targets).backward()
            if ghost:
                rows.append(torch.stack([p.batch_l2 for p in module.parameters()]).sum(0).sqrt())
            else:
                rows.append(_norms(p.grad_batch for p in module.parameters()))
        return torch.cat(rows).detach()

    return norms


def _norms(gradients: Iterable[Tensor]) -> Tensor:
    """Norms over all parameters, from one ``[n, ...]`` tensor per parameter."""
    return torch.stack([rows.flatten(1).square().sum(1) for rows in gradients]).sum(0).sqrt()


# -- what is there ----------------------------------------------------------------------------------------------


def _loadable(tools: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {name: tool for name, (package, tool) in tools.items() if package not in MISSING}


PRODUCTS: dict[str, Callable] = _loadable(
    {"double backward": ("torch", double_backward), "curvlinops": ("curvlinops", curvlinops_product)}
)
EIGENVALUES: dict[str, tuple[str, Callable]] = _loadable(
    {
        "curvlinops + eigsh": ("curvlinops", ("curvlinops", curvlinops_eigsh)),
        "edge-of-stability code": ("torch", ("double backward", edge_of_stability)),
        "PyHessian": ("pyhessian", ("double backward", pyhessian)),
        "hessian-eigenthings": ("hessian_eigenthings", ("double backward", hessian_eigenthings)),
    }
)
"""Each with the product on which it is built."""
NORMS: dict[str, Callable] = _loadable(
    {
        "vmap(grad)": ("torch", vmap_norms),
        "opacus": ("opacus", partial(opacus_norms, ghost=False)),
        "opacus, ghost clipping": ("opacus", partial(opacus_norms, ghost=True)),
        "BackPACK BatchGrad": ("backpack", partial(backpack_norms, ghost=False)),
        "BackPACK BatchL2Grad": ("backpack", partial(backpack_norms, ghost=True)),
    }
)
