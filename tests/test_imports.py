"""What is imported when: nothing heavy before its first use, and in any order."""

import argparse
import subprocess
import sys

import pytest
from hydra._internal.utils import get_args_parser

import opposing_signals
from opposing_signals.__main__ import main
from opposing_signals.arguments import hydra_parser

HEAVY = {"torch", "hydra", "matplotlib", "wandb", "lightning", "torchvision", "scipy", "sklearn", "numpy"}


def loaded(code: str) -> set[str]:
    """The heavy packages that ``code`` loads in a fresh process."""
    report = "\nimport sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ended = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return HEAVY & set(ended.stdout.splitlines()[-1].split())


def test_importing_the_package_and_asking_for_help_load_nothing_heavy():
    assert loaded("import opposing_signals") == set()
    assert loaded("from opposing_signals.__main__ import main; main(['--help']); main(['list'])") == set()


def test_all_that_the_package_offers_is_there():
    assert set(opposing_signals.__all__) == set(opposing_signals._ROOMS) <= set(dir(opposing_signals))
    for name in opposing_signals.__all__:
        assert getattr(opposing_signals, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = opposing_signals.nothing


def test_what_is_wrong_with_a_command_is_found_without_torch():
    refused = "from opposing_signals.__main__ import main; assert main(['fig3', 'optimiser.lr=1']) == 2"
    assert not loaded(refused) & {"torch", "matplotlib", "wandb", "lightning"}


@pytest.mark.slow
def test_a_finished_run_is_reused_without_lightning(tmp_path):
    command = ["fig3", "scale=smoke", "steps=12", "threads=1", "logger=none", f"output_dir={tmp_path}"]
    assert main(command) == 0
    again = f"from opposing_signals.__main__ import main; assert main({command!r}) == 0"
    assert not loaded(again) & {"lightning", "torchvision", "sklearn"}


IMPORTS = ("import opposing_signals", "import lightning.pytorch", "import torchvision")
CALLBACK = "from opposing_signals import OpposingSignals; from lightning.pytorch import Callback"


@pytest.mark.slow
@pytest.mark.parametrize("behind", [("pass", *IMPORTS), ("import torch", *IMPORTS[:1], *IMPORTS[:0:-1])])
def test_lightning_and_torchvision_can_be_imported_behind_the_package(behind):
    no_compiler = "import sys, opposing_signals.training.job; assert 'torch._inductor.compile_fx' not in sys.modules"
    code = "\n".join([*behind, CALLBACK, "assert issubclass(OpposingSignals, Callback)", no_compiler])
    assert {"lightning", "torchvision"} <= loaded(code)


@pytest.mark.slow
def test_the_package_can_be_imported_behind_lightning_and_torchvision():
    """If torchvision does not match torch, its missing operators are declared first, as other libraries do."""
    declared = """
import sys, torch
try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
    code = "\n".join([declared, *IMPORTS[::-1], CALLBACK, "assert issubclass(OpposingSignals, Callback)"])
    assert {"lightning", "torchvision"} <= loaded(code)


def test_hydras_parser_can_be_made_where_help_texts_are_checked_at_once(monkeypatch):
    """Python 3.14 checks them; for earlier versions the check is added here."""
    if sys.version_info < (3, 14):

        def check_help(_, action):
            if action.help and "%" in action.help:
                action.help % vars(action)

        def add_argument(self, *names, **settings):
            action = argparse._ActionsContainer.add_argument(self, *names, **settings)
            self._check_help(action)
            return action

        monkeypatch.setattr(argparse._ActionsContainer, "_check_help", check_help, raising=False)
        monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    with pytest.raises((TypeError, ValueError)):  # hydra-core 1.3.8; once this fails, delete `_Parser.add_argument`
        get_args_parser()
    options = hydra_parser().parse_args(["--multirun", "seed=1,2"])
    assert options.multirun
    assert options.overrides == ["seed=1,2"]
