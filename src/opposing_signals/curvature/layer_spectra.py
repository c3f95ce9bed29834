"""The weights of a network's layers by their largest singular values (talk, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from opposing_signals.errors import InputError


@dataclass(frozen=True)
class LayerSpectra:
    """The largest singular value σ of each layer's weight, and the alignment of neighbours' singular vectors.

    Attributes:
        names: L linear layers and convolutions with a weight in θ, in the model's order of modules. In a residual
            network, neighbours in this order are not always neighbours in the computation.
        norms: ``[L]`` σ_l. A convolution's weight is taken as the matrix ``[out, in x kernel]``; its norm is not that
            of the map between images.
        alignments: ``[L - 1]``, in [0, 1], NaN where the shapes of two neighbours do not match. Between linear layers
            abs(u_l·v_{l+1}), with u_l the left singular vector of σ_l (in the space of layer l's outputs) and v_{l+1}
            the right one of σ_{l+1} (in the space of layer l + 1's inputs). Where layer l + 1 reads each output at
            several places (the entries of a kernel, or a linear layer after flattened images), v_{l+1} is a matrix
            ``[outputs of l, places]``, and the alignment is ‖u_lᵀ v_{l+1}‖, the length of its component along u_l.
    """

    names: list[str]
    norms: Tensor
    alignments: Tensor


def layer_spectra(model: nn.Module) -> LayerSpectra:
    """Exact, by the eigenvectors of the smaller Gram matrix, in float64.

    Raises:
        InputError: The model has no such layer.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.weight.requires_grad
    }
    if not layers:
        raise InputError("the model has no linear layer and no convolution: leave jacobian out of instruments")
    with torch.no_grad():
        triples = [_top_singular_triple(layer.weight.double()) for layer in layers.values()]
        alignments = [_alignment(left, right) for (_, left, _), (_, _, right) in pairwise(triples)]
    return LayerSpectra(
        list(layers), torch.stack([norm for norm, _, _ in triples]), torch.tensor(alignments, dtype=torch.float64)
    )


def _top_singular_triple(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """σ, u ``[out]`` and v in the shape of one output's weights."""
    matrix = weight.flatten(1)
    if matrix.shape[0] <= matrix.shape[1]:
        left = torch.linalg.eigh(matrix @ matrix.T)[1][:, -1]
        right = matrix.T @ left
        norm = right.norm()
        right = right / norm
    else:
        right = torch.linalg.eigh(matrix.T @ matrix)[1][:, -1]
        left = matrix @ right
        norm = left.norm()
        left = left / norm
    return norm, left, right.view(weight.shape[1:])


def _alignment(left: Tensor, right: Tensor) -> float:
    is_flat = right.ndim == 1 and len(right) % len(left) == 0
    if len(right) != len(left) and not is_flat:
        return float("nan")
    return float((left @ right.reshape(len(left), -1)).norm())
