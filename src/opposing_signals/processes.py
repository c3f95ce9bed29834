"""The processes that share a run: those that torchrun or Slurm has started, or this one alone.

Each of them trains the same model and evaluates some chunks of every batch (`EmpiricalRisk.parts`). What they find is
put together at once, so that weights and measurements are the same in all of them, to the bit. The first process alone
writes and prints; and where it depends on the disk what is done, it decides for all, because another one would look at
another moment.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from opposing_signals.errors import InputError, refusal

if TYPE_CHECKING:
    from torch import Tensor, distributed

_LONGEST = timedelta(days=7)
"""What the first process may take while the others wait, for instance to tokenize a text. One that dies is not waited
for: torchrun ends the others."""
_PATIENCE = 10.0
"""Seconds that pass between a failure in one process and the same failure in another."""
_END = "the first process has ended"
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What torchrun tells each of its processes."""

Result = TypeVar("Result")

_store: distributed.Store | None = None
_failures = itertools.count()
_alone: list[None] = []


def is_one_of_several() -> bool:
    """Whether torchrun has started this process, or Slurm one of several tasks, be it `joined` already or not."""
    return {*_RANK} <= os.environ.keys() or bool(of_slurm(os.environ))


def of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have told this process, where it is one of several tasks of a job step (``srun -n 2``).

    The job's number gives the port, and the first machine of the step the address.

    Raises:
        InputError: Slurm says nothing about where the tasks are.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
        return {}
    try:
        machine = environment["SLURM_STEP_NODELIST"]
        job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
        tasks = [
            int(number)
            for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
            for _ in range(int(times or 1))
        ]
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(tasks[int(environment["SLURM_NODEID"])]),
            "MASTER_ADDR": re.sub(r"^([^,\[]*)(?:\[([^,\-\]]*).*|,.*)?$", r"\1\2", machine),
            "MASTER_PORT": str(15_000 + (job * 16 + step) % 45_000),
        }
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{environment['SLURM_STEP_NUM_TASKS']} tasks of a Slurm job step without {error}: expected srun to tell "
            "each its place; start one task, or torchrun in it"
        ) from None


def count() -> int:
    """How many processes share the run."""
    group = _group()
    return group.get_world_size() if group else 1


def rank() -> int:
    """Which of them this is, from 0 on."""
    group = _group()
    return group.get_rank() if group else 0


def _group() -> ModuleType | None:
    """`torch.distributed` if it is initialized. Whoever has not imported it has not done that: no need to import it."""
    module = sys.modules.get("torch.distributed")
    return module if module and module.is_initialized() and not _alone else None


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process computes as if there were no others, who do the same meanwhile."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


# -- what they say to each other ----------------------------------------------------------------------------------


def summed(tensor: Tensor) -> Tensor:
    """``tensor`` added up over the processes, in place; its memory layout may differ between them."""
    if count() > 1:
        from torch import distributed

        dense = tensor.contiguous()
        distributed.all_reduce(dense)
        if dense is not tensor:
            tensor.copy_(dense)
    return tensor


def summed_together(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`summed` of each, by one message for all of a type: the time of many small ones is that of their number."""
    if count() == 1 or not tensors:
        return tensors
    import torch

    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = summed(torch.cat([tensor.reshape(-1) for tensor in alike]))
        for tensor, piece in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(piece.view(tensor.shape))
    return tensors


def stacked(tensor: Tensor) -> Tensor:
    """``[processes, ...]``: the ``tensor`` of each process, of the same shape in all."""
    import torch
    from torch import distributed

    of_all = [torch.empty_like(tensor) for _ in range(count())]
    distributed.all_gather(of_all, tensor)
    return torch.stack(of_all)


def gathered(pieces: Sequence[Result]) -> list[Result]:
    """The pieces of all processes, one for each of `EmpiricalRisk.parts`, in the order of the chunks."""
    if count() == 1:
        return list(pieces)
    from torch import distributed

    theirs: list[list[Result]] = [[] for _ in range(count())]
    distributed.all_gather_object(theirs, list(pieces))
    longest = max(len(row) for row in theirs)
    return [row[turn] for turn in range(longest) for row in theirs if turn < len(row)]


def agreed(work: Callable[[], Result]) -> Result:
    """What ``work`` gives in the first process, in all of them; the others wait for it.

    Raises:
        InputError: In the others, where the first process has failed, with whatever exception.
    """
    if count() == 1:
        return work()
    from torch import distributed

    outcome: list[Any] = [None, ""]
    failure: Exception | None = None
    if is_first():
        try:
            outcome[0] = work()
        except Exception as error:
            failure, outcome[1] = error, str(error) or type(error).__name__
    distributed.broadcast_object_list(outcome)  # over whichever device the group has: NCCL alone has no CPU
    if failure is not None:
        raise failure
    if outcome[1]:
        raise InputError(outcome[1])
    return outcome[0]


def after_first(make: Callable[[], Result]) -> Result:
    """What ``make`` gives in this process, called when it has ended in the first, which may leave files for the others.

    Raises:
        InputError: In the others, where the first process has failed.
    """
    made: list[Result] = []
    agreed(lambda: made.append(make()))
    return made[0] if made else make()


# -- beginning and end ----------------------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process is one of those that were started together. On a machine with GPUs sums run over NCCL.

    The others print nothing on stdout, and leave it to the first process to report an exception that it has too.
    """
    global _store
    import torch
    from torch import distributed

    if not {*_RANK} <= os.environ.keys():
        os.environ |= of_slurm(os.environ)
    store, own_rank, size = next(distributed.rendezvous("env://"))
    _store = distributed.PrefixStore("opposing_signals", store)
    signal.signal(signal.SIGTERM, _leave)  # Lightning's own handler calls it, and would go on without it
    has_gpu = torch.cuda.is_available() and distributed.is_nccl_available()
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
        store=distributed.PrefixStore("group", store),
        rank=own_rank,
        world_size=size,
        timeout=_LONGEST,
    )
    with ExitStack() as silenced:
        if own_rank:
            silenced.enter_context(redirect_stdout(silenced.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        try:
            yield
            distributed.destroy_process_group()
        except (Exception, KeyboardInterrupt):
            if own_rank and first_has_ended():
                raise SystemExit(1) from None
            raise
        finally:
            if own_rank == 0:
                _store.set(_END, "")
            _store = None


def _leave(*_: object) -> None:
    """torchrun ends this process, because another one has failed."""
    raise SystemExit(1)


def first_has_ended(seconds: float = _PATIENCE) -> bool:
    """Whether the first process ends within ``seconds``, and so reports what this one could report."""
    from torch import distributed

    try:
        assert _store is not None
        _store.wait([_END], timedelta(seconds=seconds))
    except distributed.DistNetworkError:  # it kept the store, where no torchrun does
        return True
    except distributed.DistStoreError:
        return False
    return True


@contextmanager
def together() -> Iterator[None]:
    """Around work that all processes share. An exception in all of them is raised.

    Raises:
        SystemExit: One process has failed alone: the others wait for it in vain, in a sum for instance. It has said so.
    """
    try:
        yield
    except Exception as error:
        if _store is None or _all_have_failed(_store):
            raise
        if is_first() or not first_has_ended(0.1):
            cause = refusal(error)
            if not isinstance(cause, InputError | OSError):
                traceback.print_exc()
            said = f"process {rank() + 1} of {count()} failed alone: {cause or type(cause).__name__}"
            print(f"opposing-signals: {said}", file=sys.stderr)
        raise SystemExit(1) from None


def _all_have_failed(store: distributed.Store) -> bool:
    key = f"failure {next(_failures)}"
    missing = store.add(key, 1) < count()
    deadline = time.monotonic() + _PATIENCE
    while missing and time.monotonic() < deadline:
        time.sleep(0.05)
        missing = store.add(key, 0) < count()
    return not missing
