"""One tiny network for each kind of layer, and the Hessian of its loss by plain double backward."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from opposing_signals.curvature.risk import EmpiricalRisk

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)


class Attention(nn.Module):
    """Causal self-attention by torch's fused function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 3 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.projection(tokens).chunk(3, 2))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """The same by `nn.MultiheadAttention`, which calls the fused function internally."""

    def __init__(self, width: int, dropout: float = 0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, dropout, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class ByFunction(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 3, padding=1)
        self.norm, self.again = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images + self.again(self.second(F.relu(self.norm(self.first(images)), inplace=True))))


class PReLUByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.2]))

    def forward(self, values: Tensor) -> Tensor:
        return F.prelu(input=values, weight=self.slope)


class ReLUs(nn.Module):
    """Each way of calling ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))

    def forward(self, values: Tensor) -> Tensor:
        first, second, third, fourth, fifth = self.layers
        values = first(values).relu()
        values = second(values).relu_()
        values = torch.relu(third(values))
        values = torch.relu_(fourth(values))
        return F.relu(fifth(values), inplace=True)


class Ensemble(nn.Module):
    """Two small networks by `torch.vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 5, 32) / 4)

    def forward(self, values: Tensor) -> Tensor:
        return torch.vmap(lambda weight: F.relu(values @ weight.T))(self.weights).sum(0)


def without(parameter: str, module: nn.Module) -> nn.Module:
    """``module`` with one parameter frozen."""
    getattr(module, parameter).requires_grad_(False)
    return module


def head(width: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(width, 3)]


class Twice(nn.Module):
    """One module registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first

    def forward(self, values: Tensor) -> Tensor:
        return self.again(self.first(values).tanh())


class OneByOne(nn.Module):
    """Processes images without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([F.max_pool2d(self.convolution(image), 2) for image in images])


NETWORKS = {
    "shared_module": lambda: [nn.Flatten(), nn.Linear(32, 6), Twice(), nn.Linear(6, 3)],
    "one_by_one": lambda: [OneByOne(), *head(3)],
    "linear": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3)],
    "relu": lambda: [nn.Flatten(), nn.Linear(32, 6), ReLUs(), nn.Linear(6, 3)],
    "tanh": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 3)],
    "prelu": lambda: [nn.Flatten(), nn.Linear(32, 5), PReLUByKeyword(), nn.Linear(5, 3)],
    "silu": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.SiLU(), nn.Linear(5, 3)],
    "mish_in_place": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.Mish(inplace=True), nn.Linear(5, 3)],
    "inactive_dropout": lambda: [nn.Conv2d(2, 3, 3), nn.Dropout(0.5, inplace=True).eval(), nn.ReLU(), *head(12)],
    "gelu": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.GELU(), nn.Linear(5, 3)],
    "conv": lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), *head(12)],
    "conv_strided": lambda: [
        nn.Conv2d(2, 4, 3, 2, 1, groups=2),
        nn.GELU(),
        nn.Conv2d(4, 4, 2, dilation=1, bias=False),
        *head(4),
    ],
    "conv_same": lambda: [nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh(), *head(48)],
    "conv1d": lambda: [nn.Flatten(2), nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), *head(48)],
    "max_pool": lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), *head(12)],
    "max_pool_without_channels": lambda: [nn.Flatten(2), nn.Linear(16, 8), nn.MaxPool2d(2), *head(4)],
    "average_pool": lambda: [nn.Conv2d(2, 3, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), *head(3)],
    "batch_norm": lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), *head(12)],
    "batch_norm_first": lambda: [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.GELU(), *head(12)],
    "batch_norm_plain": lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Tanh(), *head(12)],
    "batch_norm_without_shift": lambda: [
        nn.Conv2d(2, 3, 3),
        without("bias", nn.BatchNorm2d(3)),
        nn.Tanh(),
        *head(12),
    ],
    "bias_alone": lambda: [nn.Flatten(), without("weight", nn.Linear(32, 5)), nn.Tanh(), nn.Linear(5, 3)],
    "batch_norm_1d": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)],
    "batch_norm_eval": lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).eval(), nn.ReLU(), *head(12)],
    "residual": lambda: [Residual(), nn.AdaptiveAvgPool2d(1), *head(2)],
    "layer_norm": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)],
    "group_norm": lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), *head(16)],
    "attention": lambda: [nn.Flatten(2), nn.Linear(16, 4), Attention(4), *head(8)],
    "multi_head_attention": lambda: [nn.Flatten(2), nn.Linear(16, 4), MultiHeadAttention(4), *head(8)],
    "embedding": lambda: [nn.Embedding(7, 4, padding_idx=-5), nn.LayerNorm(4), Attention(4), *head(128)],
}


IN_ONE_PASS = sorted(set(NETWORKS) - {"prelu", "shared_module", "one_by_one"})
"""Networks whose per-sample gradients take one backward pass; the others take one pass per example."""


def network(layer: str) -> nn.Sequential:
    """The network, with the same weights at every call."""
    torch.manual_seed(0)
    model = nn.Sequential(*NETWORKS[layer]())
    for parameter in model.parameters():  # normalizations start at weight 1 and bias 0, where terms vanish
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return model


def ensemble_risk() -> EmpiricalRisk:
    """A network that calls `torch.vmap`, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Ensemble(), nn.Linear(5, 3))
    inputs, targets = torch.randn(11, 2, 4, 4), torch.randint(3, (11,))
    return EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4, precision="float64")


def risk_of(
    layer: str, loss=CROSS_ENTROPY, examples: int = 11, chunk: int = 4, precision="float64", **settings
) -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 2, 4, 4, generator=generator)
    if layer == "embedding":
        inputs = torch.randint(7, (examples, 32), generator=generator)
    targets = torch.randint(3, (examples,), generator=generator)
    return EmpiricalRisk(network(layer), loss, inputs, targets, chunk=chunk, precision=precision, **settings)


def matrix_with(eigenvalues, seed=0):
    """A symmetric matrix with a random basis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def direction(risk: EmpiricalRisk, *count: int) -> Tensor:
    """``[*count, P]`` normal random numbers, the same at every call and in every precision."""
    size, generator = sum(parameter.numel() for parameter in risk.parameters), torch.Generator().manual_seed(2)
    return torch.randn(*count, size, dtype=torch.float64, generator=generator).to(risk.parameters[0])


def plain_losses(risk: EmpiricalRisk, loss=CROSS_ENTROPY) -> Tensor:
    """ℓ ``[N]`` with a graph of PyTorch's own derivatives, chunk by chunk as in the risk."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        chunks = zip(risk.inputs.split(risk.chunk), risk.targets.split(risk.chunk), strict=True)
        losses = []
        for inputs, targets in chunks:
            buffers = {name: buffer.clone() for name, buffer in risk.model.named_buffers()}
            losses.append(loss(functional_call(risk.model, buffers, (inputs,)), targets))
        return torch.cat(losses)


def plain_gradient(value: Tensor, risk: EmpiricalRisk) -> Tensor:
    gradient = torch.autograd.grad(value, risk.parameters, create_graph=True, materialize_grads=True)
    return torch.cat([piece.reshape(-1) for piece in gradient])


def plain_hessian(value: Tensor, risk: EmpiricalRisk) -> Tensor:
    """``[P, P]``, one row at a time."""
    rows = []
    for entry in plain_gradient(value, risk):
        row = torch.autograd.grad(entry, risk.parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([piece.reshape(-1) for piece in row]))
    return torch.stack(rows)


def plain_curvature(value: Tensor, risk: EmpiricalRisk, v: Tensor) -> Tensor:
    """vᵀ∇²(value) v."""
    rows = torch.autograd.grad(
        plain_gradient(value, risk) @ v, risk.parameters, retain_graph=True, materialize_grads=True
    )
    return torch.cat([row.reshape(-1) for row in rows]) @ v
