"""Checks, before any training, that the chosen model, data, loss and augmentation are compatible."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from opposing_signals.data import Dataset
from opposing_signals.errors import InputError, first_line, refusal

OF_CLASSES = ("torch.nn.CrossEntropyLoss", "opposing_signals.losses.logistic_loss")
"""Losses that also accept real-valued targets, but then mean something else."""


def fitting(config: DictConfig, dataset: Dataset) -> tuple[nn.Module, Any]:
    """Model and loss of ``config``, tried on two examples without side effects.

    Raises:
        InputError: They are not compatible with the data, or with each other.
    """
    if not dataset.is_classification and config.loss.get("_target_") in OF_CLASSES:
        raise InputError(
            f"{_chosen(config)}: {dataset.name} has numbers as targets, not classes; {_what_fits(dataset)}"
        )
    try:
        model = instantiate(config.model, input_shape=tuple(dataset.inputs.shape[1:]), outputs=dataset.output_width)
        loss = instantiate(config.loss)
        losses = _tried(model, loss, dataset, config)
    except Exception as error:
        if isinstance(refused := refusal(error), InputError):
            raise refused from None
        cause = error.__cause__ or error
        said = f"{type(cause).__name__}: {first_line(cause)}"
        raise InputError(f"{_chosen(config)}: {said}; {_what_fits(dataset)}") from error
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"model={config.model.get('_target_')}: it has no parameter that can be trained")
    if losses.shape != dataset.inputs[:2].shape[:1]:
        raise InputError(
            f"{_chosen(config)}: the loss of 2 examples has the shape {list(losses.shape)}, expected one loss an "
            f"example: [2]; {_what_fits(dataset)}"
        )
    return model, loss


def _tried(model: nn.Module, loss: Any, dataset: Dataset, config: DictConfig) -> torch.Tensor:
    if not isinstance(model, nn.Module):
        made = f"{config.model.get('_target_')} returned {type(model).__name__}"
        raise InputError(f"model: {made}; expected a torch.nn.Module")
    inputs = dataset.inputs[:2]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if config.get("augmentation"):
            inputs = instantiate(config.augmentation, seed=config.seed)(inputs, 0)
        losses = loss(model.eval()(inputs), dataset.targets[:2])
        model.train()
    return losses


def _chosen(config: DictConfig) -> str:
    """The choices, by the last part of their names."""
    model, data, loss = (str(config[field].get("_target_")).rpartition(".")[2] for field in ("model", "data", "loss"))
    return f"model {model}, data {data} and loss {loss} do not fit"


def _what_fits(dataset: Dataset) -> str:
    if not dataset.inputs.is_floating_point():
        return "to tokens fit model=gpt and loss=sequence"
    losses = "cross_entropy, label_smoothing, logistic or square" if dataset.is_classification else "square"
    models = "any model but gpt" if dataset.inputs.ndim == 4 else "model=mlp"
    return f"to {'images' if dataset.inputs.ndim == 4 else 'numbers'} fit {models} and loss={losses}"
