"""The two-layer model in full vectors by automatic differentiation, independent of the package."""

import numpy as np
import torch

from opposing_signals.studies.theory.model import TwoLayerModel


def torch_loss(theta: torch.Tensor, model: TwoLayerModel) -> torch.Tensor:
    """The loss from the covariances of x and x_o alone."""
    b, b_o, c = theta[: model.d1], theta[model.d1 : -1], theta[-1]
    beta = torch.zeros(model.d1, dtype=theta.dtype)
    beta[0] = model.beta_norm
    u = torch.full((model.d2,), model.d2**-0.5, dtype=theta.dtype)
    signal = (b_o @ u) ** 2 if model.signal == "ones" else b_o @ b_o
    return 0.5 * (((c * b - beta) ** 2).sum() + model.alpha * c**2 * signal + model.alpha)


def gradient(theta: np.ndarray, model: TwoLayerModel) -> np.ndarray:
    return torch.func.grad(torch_loss)(torch.from_numpy(theta), model).numpy()


def hessian(theta: np.ndarray, model: TwoLayerModel) -> np.ndarray:
    return torch.func.hessian(torch_loss)(torch.from_numpy(theta), model).numpy()
