"""Two processes that train together leave the record that one would, and train as they would without it."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.multiprocessing import start_processes

from opposing_signals.record import Record
from opposing_signals.record.quantities import SHARPNESS

sys.path.insert(0, str(Path(__file__).parent))
import following_together


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_leave_the_record_of_one(tmp_path, how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked processes, which end without finalizing the interpreter. After fully_shard, DTensor's caches keep gloo's
    # threads beyond destroy_process_group; one that then frees the last tensor aborts a process that is finalizing.
    start_processes(following_together.work, (how, tmp_path / "two", port), nprocs=2, start_method="forkserver")
    following_together.train(how, tmp_path / "one", 0, 1)
    one, two = Record(tmp_path / "one"), Record(tmp_path / "two")
    assert two.is_complete
    assert set(one) == set(two)
    assert (SHARPNESS in one) == (how == "ddp")
    for quantity in one:
        np.testing.assert_array_equal(one[quantity].steps, two[quantity].steps, quantity)
        np.testing.assert_allclose(one[quantity].values, two[quantity].values, rtol=1e-4, atol=1e-6, err_msg=quantity)
