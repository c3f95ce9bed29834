"""The processes that share a run: those started by torchrun or Slurm, or this one alone.

Each of them trains the same model and evaluates some chunks of every batch (`EmpiricalRisk.parts`). Their results are
combined at once, so that weights and measurements are bit-identical in all of them. Only the first process writes and
prints. Decisions that depend on the disk are made by it for all, because others would look at another moment.
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
"""How long the others wait for the first process, for instance while it tokenizes a text. A process that dies is not
waited for: torchrun ends the others."""
_PATIENCE = 10.0
"""Most seconds between a failure in one process and the same failure in another."""
_END = "the first process has ended"
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Environment variables that torchrun sets in each of its processes."""

Result = TypeVar("Result")

_store: distributed.Store | None = None
_failures = itertools.count()
_alone: list[None] = []


def is_one_of_several() -> bool:
    """Whether torchrun has started this process, or Slurm as one of several tasks, whether `joined` already or not."""
    return {*_RANK} <= os.environ.keys() or bool(of_slurm(os.environ))


def of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun for one of several tasks of a Slurm job step (``srun -n 2``); else empty.

    The port follows from the job's number, and the address is the first machine of the step.

    Raises:
        InputError: Slurm's variables do not tell where the tasks are.
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
    """Number of processes that share the run."""
    group = _group()
    return group.get_world_size() if group else 1


def rank() -> int:
    """Index of this process among them, from 0."""
    group = _group()
    return group.get_rank() if group else 0


def _group() -> ModuleType | None:
    """`torch.distributed` if it is initialized. Without an import it cannot be, so it is not imported for this."""
    module = sys.modules.get("torch.distributed")
    return module if module and module.is_initialized() and not _alone else None


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process computes as if it were the only one; all others do the same meanwhile."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


# -- communication ----------------------------------------------------------------------------------


def summed(tensor: Tensor) -> Tensor:
    """``tensor`` summed over the processes, in place; its memory layout may differ between them."""
    if count() > 1:
        from torch import distributed

        dense = tensor.contiguous()
        distributed.all_reduce(dense)
        if dense is not tensor:
            tensor.copy_(dense)
    return tensor


def summed_together(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """`summed` of each, with one message per dtype: many small messages would cost time by their number."""
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
    """The result of ``work`` in the first process, on all of them; the others wait for it.

    Raises:
        InputError: In the others, if the first process has failed, with whatever exception.
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
    distributed.broadcast_object_list(outcome)  # on whichever device the group has: NCCL alone has no CPU
    if failure is not None:
        raise failure
    if outcome[1]:
        raise InputError(outcome[1])
    return outcome[0]


def after_first(make: Callable[[], Result]) -> Result:
    """``make()``, called here once it has ended in the first process, which may leave files for the others.

    Raises:
        InputError: In the others, if the first process has failed.
    """
    made: list[Result] = []
    agreed(lambda: made.append(make()))
    return made[0] if made else make()


# -- beginning and end ----------------------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process belongs to the group that was started together. With GPUs, sums run over NCCL.

    Processes other than the first print nothing on stdout, and leave shared exceptions to the first to report.
    """
    global _store
    import torch
    from torch import distributed

    if not {*_RANK} <= os.environ.keys():
        os.environ |= of_slurm(os.environ)
    store, own_rank, size = next(distributed.rendezvous("env://"))
    _store = distributed.PrefixStore("opposing_signals", store)
    signal.signal(signal.SIGTERM, _leave)  # Lightning's own handler calls it, and would continue without it
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
    """Handler of SIGTERM, by which torchrun ends this process because another one has failed."""
    raise SystemExit(1)


def first_has_ended(seconds: float = _PATIENCE) -> bool:
    """Whether the first process ends within ``seconds``, and so reports what this one would report."""
    from torch import distributed

    try:
        assert _store is not None
        _store.wait([_END], timedelta(seconds=seconds))
    except distributed.DistNetworkError:  # without torchrun the store was in the first process
        return True
    except distributed.DistStoreError:
        return False
    return True


@contextmanager
def together() -> Iterator[None]:
    """Context of work that all processes share. An exception is raised again if all of them have one.

    Raises:
        SystemExit: One process has failed alone, while the others wait for it, in a sum for instance; it has been
            reported.
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
