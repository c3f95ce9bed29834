"""The command line in two processes, as torchrun starts them: numbers, resuming, failures.

Instead of the module, torchrun's own launcher runs functions here, in processes that need not import everything again.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import assert_same, weights
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from opposing_signals import processes
from opposing_signals.__main__ import main
from opposing_signals.app import completion
from opposing_signals.curvature import chunks
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.training import job
from opposing_signals.training.module import TrainingModule

pytestmark = pytest.mark.slow

TINY = ("scale=smoke", "logger=none", "threads=1")
IMAGES = (
    "experiment=fig01_group_losses", *TINY, "data=planted", "data.images=24", "risk.chunk=10", "model=vgg11bn",
    "model.width=4", "risk.precision=float64", "steps=5", "conclude=false", "checkpoint_seconds=0",
    "instruments.sharpness.every=4",
    "~instruments.sample_sharpness", "~instruments.sample_curvature", "~instruments.gradient_norms",
    "~instruments.jacobian",
)  # fmt: skip
TEXT = ("experiment=fig45_splitsgd_gpt2", *TINY, "steps=11")  # step 10 ends an epoch with one chunk
STREAM = (
    "experiment=fig08_text_colon", *TINY, "steps=4", "conclude=false", "instruments.token_losses.keep=9",
    "instruments.token_losses.sample=31",
)  # fmt: skip


# -- what a process runs --------------------------------------------------------------------------------------------


def command(folder: Path, arguments: tuple[str, ...], change: Callable[[], None] | None = None) -> None:
    """The command line, with its output in ``folder/<rank>.out`` and ``.err``."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{os.environ['RANK']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if change is not None:
        change()
    code = main([*arguments, f"output_dir={folder / 'outputs'}"])
    sys.stdout.flush()
    if code:
        raise SystemExit(code)


def kill_the_second_in_its_fourth_step() -> None:
    take_step = TrainingModule._take_step

    def step_or_death(module, batch):
        if os.environ["RANK"] == "1" and module.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(module, batch)

    TrainingModule._take_step = step_or_death


def let_the_second_fail_alone() -> None:
    processes._PATIENCE = 0.5
    evaluate = EmpiricalRisk.evaluate

    def evaluate_or_fail(*arguments, **named):
        if os.environ["RANK"] == "1":
            raise InputError("its data are bad")
        return evaluate(*arguments, **named)

    EmpiricalRisk.evaluate = evaluate_or_fail


def let_the_disk_of_the_second_be_read_only() -> None:
    """Writing to the output folder fails."""
    if os.environ["RANK"] == "1":

        def guard(event, arguments):
            changes = event in ("os.mkdir", "os.rename", "os.remove", "shutil.move", "shutil.rmtree")
            if event == "open":
                changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if changes and any(f"{os.sep}outputs{os.sep}" in str(path) for path in arguments):
                raise PermissionError(f"process 1 writes: {event} {arguments}")

        sys.addaudithook(guard)


# -- how it is started ----------------------------------------------------------------------------------------------


def started(folder: Path, *arguments: str, change: Callable[[], None] | None = None) -> bool:
    """Run the command in two processes; returns whether they succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="forkserver", max_restarts=0, monitor_interval=0.05,
    )  # fmt: skip
    try:
        elastic_launch(config, command)(folder, arguments, change)
    except ChildFailedError:
        return False
    return True


def alone(folder: Path, *arguments: str) -> None:
    assert main([*arguments, f"output_dir={folder / 'outputs'}"]) == 0


def record_in(folder: Path, name: str = "") -> Record:
    (run,) = (folder / "outputs" / "runs").glob(f"{name}*")
    return Record(run)


def assert_near(one: Record, other: Record, tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest entry; including weights, but not batch norm's running statistics."""
    assert set(one) == set(other)
    for quantity in one:
        np.testing.assert_array_equal(one[quantity].steps, other[quantity].steps, quantity)
        ours, theirs = one[quantity].values, other[quantity].values
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.nanmax(np.abs(ours)), err_msg=quantity)
    theirs = weights(other)
    for name, tensor in weights(one).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=tolerance, msg=name)


def lines(folder: Path, rank: int) -> list[str]:
    """Lines that the process printed."""
    said = (folder / f"{rank}.err").read_text()
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("opposing-signals: ")]


# -- numbers --------------------------------------------------------------------------------------------------------


def test_two_processes_train_text_as_one_does_in_a_sweep(tmp_path):
    assert started(tmp_path / "two", *TEXT, change=let_the_disk_of_the_second_be_read_only), lines(tmp_path / "two", 1)
    alone(tmp_path / "one", *TEXT, "conclude=false")
    for run in ("gpt2_adam", "gpt2_splitsgd"):
        shared = record_in(tmp_path / "two", run)
        assert_near(record_in(tmp_path / "one", run), shared, 1e-4)
        assert shared.provenance["machine"]["processes"] == 2
    assert "fig45_oscillations" in (tmp_path / "two" / "0.out").read_text()
    assert (tmp_path / "two" / "1.out").read_text() == ""
    assert (tmp_path / "two/outputs/fig45_splitsgd_gpt2/figure.png").is_file()


def test_the_largest_changes_of_all_processes_are_found(tmp_path):
    assert started(tmp_path / "two", *STREAM)
    alone(tmp_path / "one", *STREAM)
    one, two = record_in(tmp_path / "one"), record_in(tmp_path / "two")
    assert {"token_top", "token_followed", "token_rising"} <= set(one)
    np.testing.assert_array_equal(one["token_points"].values, two["token_points"].values)
    assert_near(one, two, 1e-4)


def test_two_processes_measure_images_as_one_does_and_resume_to_the_bit(tmp_path):
    assert started(tmp_path / "two", *IMAGES, change=let_the_disk_of_the_second_be_read_only)
    alone(tmp_path / "one", *IMAGES)
    whole = record_in(tmp_path / "two")
    assert {"sharpness", "sample_loss", "mean_feature_norm", "probe_logits"} <= set(whole)
    assert_near(record_in(tmp_path / "one"), whole, 1e-6)
    assert not started(tmp_path / "killed", *IMAGES, change=kill_the_second_in_its_fourth_step)
    assert not record_in(tmp_path / "killed").is_complete
    assert len(record_in(tmp_path / "killed")["train_loss"]) >= 3
    shutil.copytree(tmp_path / "killed", tmp_path / "fewer")
    assert started(tmp_path / "killed", *IMAGES)
    resumed = record_in(tmp_path / "killed")
    assert_same(resumed, whole)
    alone(tmp_path / "fewer", *IMAGES)
    assert_near(whole, record_in(tmp_path / "fewer"), 1e-6)


def test_more_processes_than_chunks_share_them(tmp_path):
    assert started(tmp_path / "two", *IMAGES, "risk.chunk=24")
    alone(tmp_path / "one", *IMAGES, "risk.chunk=24")
    assert_near(record_in(tmp_path / "one"), record_in(tmp_path / "two"), 1e-6)


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*IMAGES, "data=cifar10", "data.images=20", "data.root=/nowhere"), "data.root=/nowhere"),
        ((*IMAGES, "optimizer.lr=1e30"), "training stopped: the training loss is"),
    ],
)
def test_a_failure_of_all_is_said_once(tmp_path, arguments, message):
    assert not started(tmp_path, *arguments)
    (line,) = lines(tmp_path, 0)
    assert message in line
    assert lines(tmp_path, 1) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*IMAGES, "trainer.devices=3"),
            "trainer.devices=3: expected 2, as it is, or null; start several",
        ),
        ((*IMAGES, "+trainer.num_nodes=2"), "trainer.num_nodes=2: expected 1"),
        (
            (*IMAGES, "risk.chunk=24", "risk.compile_training=true"),
            "risk.chunk=24: 24 examples are 1 chunks, fewer than the 2 processes, which cannot share one (compiled, or "
            "with gradients of the model's own, or one with fewer than 2 examples); expected at most 12",
        ),
        (("experiment=theorem31", *TINY), "2 processes for theorem31: expected one"),
    ],
)
def test_what_two_processes_cannot_do_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for module in (completion, job, chunks):
        monkeypatch.setattr(module, "count", lambda: 2)
    assert main([*arguments, f"output_dir={tmp_path}"]) == 2
    assert f"opposing-signals: {message}" in capsys.readouterr().err


def test_a_chunk_in_which_random_numbers_are_drawn_is_not_shared(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(4, 2))
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    risk = EmpiricalRisk(model, loss, torch.randn(9, 4), torch.zeros(9, dtype=torch.long), chunk=9)
    for module in (job, chunks):
        monkeypatch.setattr(module, "count", lambda: 2)
    with pytest.raises(InputError, match=r"cannot share one \(layer '0' is Dropout.*expected at most 4"):
        job._check_processes(risk, slice(None))


def test_a_failure_of_one_process_ends_all(tmp_path):
    assert not started(tmp_path, *IMAGES, change=let_the_second_fail_alone)
    assert lines(tmp_path, 0) == []
    assert lines(tmp_path, 1) == ["opposing-signals: process 2 of 2 failed alone: its data are bad"]
    assert not list((tmp_path / "outputs" / "runs").glob("*/state.json"))  # neither complete nor stopped


def test_torchrun_with_a_launcher_of_side_by_side_jobs_is_refused():
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "opposing_signals", "experiment=fig45_splitsgd_gpt2", "hydra/launcher=joblib"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("opposing-signals: ")]
    assert line.startswith("opposing-signals: hydra/launcher=joblib under torchrun: expected basic")


def test_tasks_of_a_slurm_step_are_told_what_torchrun_tells():
    step = {
        "SLURM_STEP_NUM_TASKS": "5", "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_STEP_NODELIST": "gpu[07-08,12]",
    }  # fmt: skip
    told = processes.of_slurm(step)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == ("3", "5", "1", "2")
    assert told["MASTER_ADDR"] == "gpu07"
    assert told["MASTER_PORT"] == processes.of_slurm({**step, "SLURM_PROCID": "4", "SLURM_NODEID": "2"})["MASTER_PORT"]
    for names, first in (("a1,a2", "a1"), ("one", "one"), ("n[3,5-9]", "n3"), ("c-[1-2],d", "c-1")):
        assert processes.of_slurm({**step, "SLURM_STEP_NODELIST": names})["MASTER_ADDR"] == first
    assert not processes.of_slurm({**step, "SLURM_STEP_NUM_TASKS": "1"})
    assert not processes.of_slurm({"SLURM_NTASKS": "5", "SLURM_PROCID": "0"}), "a batch script is one process"
    with pytest.raises(InputError, match="5 tasks of a Slurm job step without 'SLURM_PROCID'"):
        processes.of_slurm({name: value for name, value in step.items() if name != "SLURM_PROCID"})


def task(number: int, arguments: tuple[str, ...]) -> None:
    """One of two tasks of a Slurm job step on this machine."""
    os.environ |= {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getppid()), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }  # fmt: skip
    raise SystemExit(main(list(arguments)))


def test_two_tasks_of_a_slurm_step_train_one_run(tmp_path):
    """They share the forkserver as parent, whose process id stands for the job's."""
    settings = ("steps=4", "risk.chunk=10", "conclude=false", f"output_dir={tmp_path}")
    context = multiprocessing.get_context("forkserver")
    tasks = [
        context.Process(target=task, args=(number, ("experiment=fig03_chebyshev", *TINY, *settings)))
        for number in range(2)
    ]
    for one in tasks:
        one.start()
    for one in tasks:
        one.join()
    assert [one.exitcode for one in tasks] == [0, 0]
    (run,) = (tmp_path / "runs").iterdir()
    assert Record(run).is_complete
    assert Record(run).provenance["machine"]["processes"] == 2
