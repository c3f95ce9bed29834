"""Two processes that train together leave the record of a single one, and train as without the follower."""

import re
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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    # Forked processes, which end without finalizing the interpreter. After fully_shard, DTensor's caches keep gloo's
    # threads alive beyond destroy_process_group; a thread that then frees the last tensor aborts a finalizing process.
    start_processes(following_together.work, (folder, free_port()), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("how", following_together.HOW)
def test_two_processes_leave_the_record_of_one(tmp_path, of_two, how):
    following_together.train(how, tmp_path / "one", 0, 1)
    one, two = Record(tmp_path / "one"), Record(of_two / how)
    assert two.is_complete
    assert set(one) == set(two)
    assert (SHARPNESS in one) == (how != "fsdp")
    order = np.argsort(two["batch_index"].values, 1)  # Lightning assigns rows to processes alternately
    np.testing.assert_array_equal(one["batch_index"].values, np.take_along_axis(two["batch_index"].values, order, 1))
    for quantity in one:
        values = two[quantity].values
        values = np.take_along_axis(values, order, 1) if quantity in ("batch_loss", "batch_index") else values
        np.testing.assert_array_equal(one[quantity].steps, two[quantity].steps, quantity)
        np.testing.assert_allclose(one[quantity].values, values, rtol=1e-4, atol=1e-6, err_msg=quantity)


@pytest.mark.parametrize(
    ("how", "state", "steps"),
    [
        ("watching", "stopped: measuring failed at step 21: process 2 of 2 follows no longer: stopped: watching", 21),
        ("measuring", r"stopped: measuring failed at step \d+: out of luck", 40),
        ("loader", "stopped: measuring failed at step 20: another process has come to the end, step 20", 20),
    ],
)
def test_no_process_waits_for_one_that_has_failed(tmp_path, how, state, steps):
    """Each process trains to its end; the first one writes what it knows."""
    arguments = tmp_path / "run", free_port(), how
    start_processes(following_together.follow_where_one_fails, arguments, nprocs=2, start_method="forkserver")
    record = Record(tmp_path / "run")
    assert re.match(state, record.state), record.state
    assert record["batch_size"].steps.tolist() == list(range(steps))
