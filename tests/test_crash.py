import faulthandler
import logging
import multiprocessing
import signal
import subprocess
import sys

import pytest

from opposing_signals.__main__ import main
from opposing_signals.errors import InputError
from opposing_signals.record import Record

CONFIGURATION = {"steps": 5}
DIES = """
import os, sys
from opposing_signals.record import Record
with Record.writing(sys.argv[1], {"steps": 5}) as record:
    with Record.writing(sys.argv[1] + "/other", {"steps": 5}):
        pass
    record.append("train_loss", 0, 1.0)
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def written_again(folder, caplog) -> list[str]:
    """Messages of a process that writes the run after another one."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), Record.writing(folder, CONFIGURATION):
        pass
    return [entry.getMessage() for entry in caplog.records]


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGSEGV, "Segmentation fault"), (signal.SIGABRT, "Aborted"), (signal.SIGKILL, "SIGKILL")],
)
def test_the_next_process_tells_once_how_the_last_one_died(number, told, tmp_path, caplog):
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path, str(int(number))], capture_output=True, timeout=120)
    assert died.returncode == -number
    (line,) = written_again(tmp_path, caplog)
    assert told in line
    assert str(tmp_path) in line
    assert len(Record(tmp_path)["train_loss"]) == 1
    assert written_again(tmp_path, caplog) == []
    assert ("line 8" in (tmp_path / "died.txt").read_text()) == (number != signal.SIGKILL)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, InputError, None])
def test_a_process_that_ends_by_itself_is_not_told_of(ending, tmp_path, caplog):
    was_enabled = faulthandler.is_enabled()
    try:
        with Record.writing(tmp_path, CONFIGURATION) as record:
            record.append("train_loss", 0, 1.0)
            if ending is not None:
                raise ending
    except (KeyboardInterrupt, InputError):
        pass
    assert faulthandler.is_enabled() == was_enabled
    assert written_again(tmp_path, caplog) == []


def test_an_interpreter_that_ends_with_a_run_left_open_is_not_told_of(tmp_path, caplog):
    code = """
import os, sys
from opposing_signals.record import Record
sys.writer = Record.writing(sys.argv[1], {"steps": 5})
sys.writer.__enter__().append("train_loss", 0, 1.0)
os.chdir("/")
"""
    subprocess.run([sys.executable, "-c", code, tmp_path.name], cwd=tmp_path.parent, check=True, timeout=120)
    assert written_again(tmp_path, caplog) == []


def test_a_complete_run_is_not_told_of(tmp_path, caplog):
    with Record.writing(tmp_path, CONFIGURATION) as record:
        record.write_state("complete")
    (tmp_path / "running.txt").write_text("process 1\n")
    assert written_again(tmp_path, caplog) == []


def test_the_same_command_tells_of_a_run_that_died_and_completes_it(tmp_path, capfd):
    arguments = ["experiment=linear_depth", "run=linear_depth2", "hydra.mode=RUN", "scale=smoke", "logger=none"]
    arguments += ["threads=1", "conclude=false", f"output_dir={tmp_path}", "job=killing.descent_or_fault"]
    process = multiprocessing.get_context("forkserver").Process(target=main, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGSEGV
    capfd.readouterr()
    assert main(arguments) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert Record(folder).is_complete
    printed = capfd.readouterr()
    (line,) = (line for line in (printed.out + printed.err).splitlines() if "died" in line)
    assert f"{folder} died: Segmentation fault" in line
