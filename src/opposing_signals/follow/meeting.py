"""Coordination of the processes that follow one training: none of them waits for one that has stopped following."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.processes import count, rank

LAST = 30.0
"""Seconds for which an ending process waits for the others."""

_LEFT, _END = "left", "end"
_runs = itertools.count()


class Meeting:
    """Lets processes check, before a collective operation, that all of them have reached it."""

    def __init__(self) -> None:
        self._store: Any = None

    def begin(self) -> None:
        """A training begins, in all processes."""
        run = next(_runs)
        if count() > 1:
            from torch.distributed import PrefixStore
            from torch.distributed.distributed_c10d import _get_default_store

            self._store = PrefixStore(f"opposing signals {run}", _get_default_store())

    def wait(self, where: str, is_end: bool = False) -> None:
        """Wait until all processes are at ``where``, a name that is unique in the whole run.

        Args:
            where: The step, and what is done there.
            is_end: Whether this process stops following afterwards, and so waits for at most `LAST` seconds.

        Raises:
            InputError: A process has left, has ended elsewhere or took too long. All processes get it, so that none
                goes on alone.
        """
        if self._store is None:
            return
        if is_end:
            self._store.set(_END, where)
        deadline, arrived, reason = time.monotonic() + (LAST if is_end else math.inf), self._store.add(where, 1), ""
        while arrived < count() and not reason:
            if self._store.check([_LEFT]):
                reason = self._store.get(_LEFT).decode()
            elif self._store.check([_END]) and self._store.get(_END).decode() != where:
                reason = f"another process has come to {self._store.get(_END).decode()}"
            elif time.monotonic() > deadline:
                reason = f"process {rank() + 1} has waited {LAST:g} s for another"
            else:
                time.sleep(0.002)
                arrived = self._store.add(where, 0)
        # The first process that knows decides for all.
        decided = self._store.compare_set(f"decided {where}", "", reason or where).decode()
        if decided != where:
            raise InputError(decided)

    def leave(self, reason: str) -> None:
        """This process stops following: the others need not wait for it."""
        if self._store is not None:
            self._store.set(_LEFT, f"process {rank() + 1} of {count()} follows no longer: {reason}")
            self._store = None
