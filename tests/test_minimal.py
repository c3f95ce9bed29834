import importlib.util
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_idea_in_one_file_shows_it(tmp_path, monkeypatch, capsys):
    """Groups that move against each other while the train loss barely moves, and a picture of them."""
    specification = importlib.util.spec_from_file_location("minimal", EXAMPLES / "minimal.py")
    minimal = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(minimal)
    assert len((EXAMPLES / "minimal.py").read_text("utf-8").splitlines()) <= 250
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minimal, "STEPS", 70)
    train, trained = minimal.train, []

    def train_and_keep(*data):
        trained.append(train(*data))
        return trained[-1]

    monkeypatch.setattr(minimal, "train", train_and_keep)
    minimal.main()
    assert (tmp_path / "opposing_signals.png").stat().st_size > 10_000
    assert "correlation of the two groups" in capsys.readouterr().out
    ((losses, sharpness),) = trained
    step, rising, falling = minimal.opposing_groups(np.diff(losses, axis=0))
    assert minimal.correlation_of(losses, rising, falling, step) < -0.8
    change = losses[step + 1] - losses[step]
    assert min(change[rising].mean(), -change[falling].mean()) > 5 * abs(change.mean())
    assert max(value for _, value in sharpness) > 2 / minimal.STEP_SIZE
