"""Which examples a batch holds: read from the loader's sampler, in whose order the batches come."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset


class DrawnIndices:
    """The indices of the batches that a `DataLoader` has drawn and training has not seen yet.

    Workers and prefetching draw ahead but keep the order.

    Args:
        dataset: The data set that indices refer to. If the loader reads a `Subset` of it, the subset's positions are
            translated; if it reads data of another length, its indices are not used.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._queue: deque[list[int] | None] = deque()
        self._translation: Sequence[int] | None = None
        self._loader: DataLoader[Any] | None = None
        self._epoch = 0

    def watch(self, loader: Any, iterator: Any = None) -> None:
        """Follow what ``loader`` draws from now on.

        Args:
            loader: Anything but a `DataLoader` with a sampler is ignored.
            iterator: The loader's iterator, if it has already begun to draw.
        """
        loader = getattr(loader, "base_dataloader", loader)  # inside accelerate's wrapper
        if loader is self._loader or not self._is_indexed(loader):
            return
        self.forget()
        self._loader = loader
        _let_loaders_be_watched()
        _watching.setdefault(loader, []).append(self)
        if iterator is not None and hasattr(iterator, "_sampler_iter"):
            sent, received = getattr(iterator, "_send_idx", 0), getattr(iterator, "_rcvd_idx", 0)
            self._queue.extend([None] * (sent - received))  # workers have these already
            iterator._index_sampler = loader._index_sampler
            iterator._sampler_iter = self._noted(iterator._sampler_iter, self._epoch)

    def forget(self) -> None:
        """Stop following the loader."""
        if self._loader is not None:
            _watching[self._loader].remove(self)
        self._loader = None
        self._queue.clear()

    def next(self) -> list[int] | None:
        """``[n]`` indices of the next batch that training sees; None if they are not known."""
        return self._queue.popleft() if self._queue else None

    def _is_indexed(self, loader: Any) -> bool:
        if not isinstance(loader, DataLoader) or not hasattr(loader.batch_sampler, "__iter__"):
            return False
        read = loader.dataset
        self._translation = None
        if isinstance(read, Subset) and read is not self._dataset and read.dataset is self._dataset:
            self._translation = read.indices
            return True
        with suppress(TypeError):
            return len(read) == len(self._dataset)  # type: ignore[arg-type]
        return False

    def begin(self, sampler: Any) -> Iterator[Any]:
        """An epoch begins; unused indices of an earlier epoch are dropped."""
        self._epoch += 1
        self._queue.clear()
        return self._noted(iter(sampler), self._epoch)

    def _noted(self, batches: Iterator[Any], epoch: int) -> Iterator[Any]:
        for batch in batches:
            if epoch == self._epoch:
                indices = None
                with suppress(TypeError, ValueError):  # keys that are not numbers
                    drawn = batch if isinstance(batch, list) else np.asarray(batch).reshape(-1)
                    indices = [int(index) for index in drawn]
                    if self._translation is not None:
                        indices = [int(self._translation[index]) for index in indices]
                self._queue.append(indices)
            yield batch


class _Tap:
    """A sampler's batches of indices, noted as they are drawn."""

    def __init__(self, sampler: Any, drawn: DrawnIndices) -> None:
        self._sampler = sampler
        self._drawn = drawn

    def __iter__(self) -> Iterator[Any]:
        return self._drawn.begin(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


_watching: weakref.WeakKeyDictionary[DataLoader[Any], list[DrawnIndices]] = weakref.WeakKeyDictionary()
"""Loader ↦ observers of what it draws."""


def _let_loaders_be_watched() -> None:
    """Make loaders report what they draw without changing them: frameworks build other loaders from their samplers."""
    original: Any = DataLoader._index_sampler  # a property
    if not hasattr(original.fget, "is_watched"):

        def index_sampler(loader: DataLoader[Any]) -> Any:
            sampler = original.fget(loader)
            for drawn in _watching.get(loader, ()):
                sampler = _Tap(sampler, drawn)
            return sampler

        index_sampler.is_watched = True  # type: ignore[attr-defined]
        DataLoader._index_sampler = property(index_sampler)  # type: ignore[method-assign, assignment]
