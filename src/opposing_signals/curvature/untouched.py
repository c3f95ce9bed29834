"""State that a forward pass may change besides its outputs, restored after a measurement."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opposing_signals.errors import InputError

_OF_TORCH = set(vars(nn.Module()))
"""Attributes that every module has: its hooks, and the tables of its parameters, buffers and modules."""


def random_states(device: torch.device) -> tuple[Any, ...]:
    """States of the global generators: PyTorch's on the CPU and on ``device``, Python's and NumPy's."""
    of_device = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002  # the global generator, which models share
    words = of_numpy["state"]["key"].tobytes(), of_numpy["state"]["pos"], of_numpy["gauss"]
    return torch.get_rng_state().numpy().tobytes(), of_device, random.getstate(), words


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore `random_states` afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def replaced(model: nn.Module, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``model`` computes with ``others`` in place of its ``parameters``.

    `torch.func.functional_call` does not restore the parameters of a module that the model holds under two names.
    """
    by_parameter = dict(zip(map(id, parameters), others, strict=True))
    places = [
        (module._parameters, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in by_parameter
    ]
    try:
        for table, name, parameter in places:
            table[name] = by_parameter[id(parameter)]  # type: ignore[assignment]  # functions of torch take any tensor
        yield
    finally:
        for table, name, parameter in places:
            table[name] = parameter


class ModelState:
    """Mode, parameters, buffers and plain attributes of a model's modules.

    Attributes may be tensors, NumPy arrays, random generators, and lists, dictionaries, sets and deques of anything.
    The contents of other objects are not restored.

    Parameters and tensors that are plain attributes can be as large as all the rest, and few models change them in a
    forward pass: `nn.Embedding` with ``max_norm`` does. So they are copied and compared the first time, and again only
    if they had changed.

    Attributes:
        moves: Whether they had changed; None before the first time.
    """

    def __init__(self) -> None:
        self.moves: bool | None = None

    @contextmanager
    def kept(self, model: nn.Module) -> Iterator[None]:
        """Restore the state of ``model``, which must be the same model each time, afterwards.

        Raises:
            InputError: A parameter or a tensor among the attributes was written into after the first time had found
                none to change.
        """
        modules = {name: _Module(module) for name, module in model.named_modules()}
        tensors = {
            f"{name}.{own}" if name else own: _Tensor(tensor, is_copied=self.moves is not False)
            for name, module in modules.items()
            for own, tensor in module.tensors.items()
        }
        try:
            yield
        finally:
            for module in modules.values():
                module.restore()
            moved = [name for name, tensor in tensors.items() if tensor.has_moved()]
            if self.moves is False and moved:
                raise InputError(
                    f"the model writes into {moved[0]!r} during its forward pass, and did not when it was first seen: "
                    "a measurement cannot undo that; make it a buffer (register_buffer), or write into a copy"
                )
            for tensor in tensors.values():
                tensor.restore()
            self.moves = self.moves or bool(moved)


class _Module:
    """One module without its children.

    Attributes:
        tensors: Parameters and tensors among the attributes, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._mode = module.training
        self._attributes = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        self._buffers = dict(module._buffers)
        self._copies = {name: buffer.clone() for name, buffer in self._buffers.items() if buffer is not None}
        self._containers: list[tuple[Any, Any]] = []
        self._others: list[Callable[[], Any]] = []  # restore their contents
        self.tensors: dict[str, Tensor] = {
            name: parameter for name, parameter in module._parameters.items() if parameter is not None
        }
        for name, value in self._attributes.items():
            self._look_into(value, name)

    def _look_into(self, value: Any, name: str) -> None:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if value.layout is torch.strided:
                self.tensors[name] = value
        elif isinstance(value, np.ndarray):
            self._others.append(partial(np.copyto, value, value.copy()))
        elif isinstance(value, torch.Generator):
            self._others.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            self._others.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, random.Random):
            self._others.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, list | tuple | dict | set | deque):
            if not isinstance(value, tuple):
                if any(value is container for container, _ in self._containers):
                    return
                self._containers.append((value, dict(value) if isinstance(value, dict) else list(value)))
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                self._look_into(part, f"{name}[{key!r}]")

    def restore(self) -> None:
        """Restore all but `tensors`."""
        self._module.training = self._mode
        attributes = vars(self._module)
        for name in [name for name in attributes if name not in _OF_TORCH and name not in self._attributes]:
            del attributes[name]
        attributes.update(self._attributes)
        for container, content in self._containers:
            container.clear()
            container.extend(content) if isinstance(container, list | deque) else container.update(content)
        for put_back in self._others:
            put_back()
        if isinstance(self._module._buffers, dict):  # torch.jit has another kind
            self._module._buffers.clear()
            self._module._buffers.update(self._buffers)
        for name, copy in self._copies.items():
            buffer = self._buffers[name]
            assert buffer is not None
            if buffer.shape != copy.shape:
                buffer.data = copy
            else:
                with torch.no_grad():
                    buffer.copy_(copy)


class _Tensor:
    """A tensor, its memory, its version counter and, if asked for, a copy."""

    def __init__(self, tensor: Tensor, is_copied: bool) -> None:
        self._tensor, self._data = tensor, tensor.data
        self._seen = tensor.data_ptr(), _version(tensor)
        self._copy = self._data.clone() if is_copied else None

    def has_moved(self) -> bool:
        """Whether it was written into or replaced, by address, version and, if there is one, the copy."""
        if (self._tensor.data_ptr(), _version(self._tensor)) != self._seen:
            return True
        return self._copy is not None and not torch.equal(self._data, self._copy)

    def restore(self) -> None:
        """Restore it from the copy."""
        if self._copy is not None and self.has_moved():
            self._tensor.data = self._data
            self._data.copy_(self._copy)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
