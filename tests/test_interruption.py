"""A process that is told to end writes its state, reports it in one line, and has the signal's exit code."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from recording import assert_same

from opposing_signals import interruption
from opposing_signals.__main__ import main
from opposing_signals.interruption import MESSAGE
from opposing_signals.record import Record

COMMAND = ("experiment=fig03_chebyshev", "scale=smoke", "logger=none", "threads=1", "steps=8", "conclude=false")
AT = 4
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@pytest.fixture
def told(monkeypatch):
    """Send this process a number of signals in the middle of step `AT`.

    Signals are not ignored here, as they can be if a shell or nohup started the tests in the background.
    """
    append = Record.append
    began_with = {number: signal.signal(number, signal.SIG_DFL) for number in map(signal.Signals.__getitem__, SIGNALS)}
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def telling(number, times=1):
        def append_and_tell(record, quantity, step, value):
            append(record, quantity, step, value)
            if (quantity, step) == ("train_loss", AT):
                for _ in range(times):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(Record, "append", append_and_tell)

    yield telling
    monkeypatch.undo()
    for number, handler in began_with.items():
        signal.signal(number, handler)


def only_run(folder) -> Record:
    (run,) = (folder / "runs").iterdir()
    return Record(run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Record:
    folder = tmp_path_factory.mktemp("whole")
    assert main([*COMMAND, f"output_dir={folder}"]) == 0
    return only_run(folder)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_training_ends_after_its_step_with_its_state_and_goes_on_to_the_same_bits(
    tmp_path, whole, told, monkeypatch, capfd, name
):
    number = getattr(signal, name)
    earlier = signal.getsignal(number)
    told(number)
    assert main([*COMMAND, f"output_dir={tmp_path}"]) == 128 + number
    assert signal.getsignal(number) == earlier
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and ": step " not in line]
    assert lines == [MESSAGE]
    record = only_run(tmp_path)
    assert not record.is_complete
    assert torch.load(record.checkpoint, weights_only=True)["global_step"] == AT + 1
    monkeypatch.undo()
    assert main([*COMMAND, f"output_dir={tmp_path}"]) == 0
    assert_same(only_run(tmp_path), whole)


def test_a_signal_that_comes_in_a_destructor_is_heeded_by_the_next_step(monkeypatch):
    class Telling:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: lost.append(raised.exc_type))
    with interruption.ended_by_signals():
        Telling()
        assert lost == [interruption.Interrupted]
        assert interruption.is_told_to_end()
    assert not interruption.is_told_to_end()


def test_a_second_signal_ends_the_process_within_the_step(tmp_path, told):
    told(signal.SIGTERM, times=2)
    assert main([*COMMAND, f"output_dir={tmp_path}"]) == 143
    assert not only_run(tmp_path).checkpoint.exists()


def test_a_sweep_does_not_begin_its_other_jobs(tmp_path, told, capfd):
    told(signal.SIGTERM)
    assert main(["--multirun", *COMMAND, "seed=1,2", f"output_dir={tmp_path}"]) == 143
    assert only_run(tmp_path).checkpoint.exists()
    assert MESSAGE in capfd.readouterr().err


@pytest.mark.slow
def test_a_job_in_another_process_writes_its_state_before_the_end_of_others_ends_it(tmp_path, capfd):
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed")
    parallel = [
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "job=killing.train_until_the_launcher_is_told_to_end",
    ]
    command = [*COMMAND[:-2], "steps=100000", "seed=1,2", *parallel, f"output_dir={tmp_path}"]
    assert main(["--multirun", *command]) == 143
    assert MESSAGE in capfd.readouterr().err
    first = next(run for run in (tmp_path / "runs").iterdir() if "seed1" in run.name)
    assert torch.load(first / "checkpoint.ckpt", weights_only=True)["global_step"] == AT


def test_only_a_process_that_handles_the_signal_is_told():
    waiting = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not interruption._is_heeding(waiting.pid)  # the signal would kill it, and joblib then all others
    finally:
        waiting.kill()
        waiting.wait()
    assert not interruption._is_heeding(waiting.pid)
    with interruption.ended_by_signals():
        assert interruption._is_heeding(os.getpid())


def test_a_launcher_that_submits_again_is_asked_after_the_state_is_written(tmp_path, told):
    seen = []
    earlier = signal.signal(signal.SIGUSR2, lambda *_: seen.append(only_run(tmp_path).checkpoint.exists()))
    try:
        told(signal.SIGUSR2)
        assert main([*COMMAND, f"output_dir={tmp_path}"]) == 0
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert seen == [True]
    assert only_run(tmp_path).is_complete


def test_what_the_user_has_ignored_stays_ignored(tmp_path, told):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        told(signal.SIGHUP)
        assert main([*COMMAND, f"output_dir={tmp_path}"]) == 0
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_slurms_own_requeueing_leaves_no_second_checkpoint(tmp_path, told, monkeypatch):
    """Lightning would resume from its own checkpoint, which is not the one that the record was cut back to."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
                        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    told(signal.SIGUSR1)
    assert main([*COMMAND, f"output_dir={tmp_path}"]) == 128 + signal.SIGUSR1
    record = only_run(tmp_path)
    assert sorted(path.name for path in record.folder.glob("*.ckpt")) == ["checkpoint.ckpt"]


def test_a_command_that_trains_nothing_ends_in_a_line_too(tmp_path):
    code = (
        "import os, signal, sys, opposing_signals.__main__ as m\n"
        "m._exit_code = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(m.main(['report']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (143, f"{MESSAGE}\n")
