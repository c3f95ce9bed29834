import io
from types import SimpleNamespace

import pytest

from opposing_signals.training.module import TrainingModule
from opposing_signals.training.progress import Progress, TimeLeft


def kinds_of(schedule, steps):
    """``schedule``: name ↦ (every, consecutive)."""
    return [
        frozenset(name for name, (every, consecutive) in schedule.items() if step % every < consecutive)
        for step in range(steps)
    ]


@pytest.mark.parametrize("cold", [1, 20])
@pytest.mark.parametrize(
    "schedule",
    [
        {"sharpness": (1, 1)},
        {"sharpness": (9, 1)},
        {"sharpness": (10, 2)},
        {"sharpness": (5, 1), "norms": (20, 2)},
    ],
)
def test_the_time_left_knows_which_steps_measure(schedule, cold):
    costs = {"sharpness": 30.0, "norms": 7.0}
    kinds = kinds_of(schedule, 200)
    seconds = [1 + sum(costs[name] for name in kind) for kind in kinds]
    seconds[0] *= cold  # eigenvectors without a warm start
    left, period = TimeLeft(kinds), max(every for every, _ in schedule.values())
    assert left.seconds is None
    for step, kind in enumerate(kinds):
        left.note(kind, seconds[step])
        rest = sum(seconds[step + 1 :])
        if step == 0:
            assert left.seconds is None
        elif step > period + 1:
            assert left.seconds == pytest.approx(rest, rel=0.1)
        elif step > 2:
            assert rest / 4 < left.seconds < 4 * rest
        else:
            assert left.seconds is None or rest / 4 < left.seconds < 4 * rest


def test_the_time_left_follows_steps_that_become_slower():
    left = TimeLeft([frozenset()] * 300)
    for step in range(200):
        left.note(frozenset(), 1 if step < 150 else 3)
    assert left.seconds == pytest.approx(3 * 100)


class Every:
    def __init__(self, every):
        self.every = every

    def is_due(self, step):
        return step % self.every == 0


class Terminal(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def run(monkeypatch):
    """Messages along a run of some steps, every fifth of which takes ten products of 8 seconds."""

    def follow(name, is_terminal, steps, columns=80):
        screen, clock = Terminal(is_terminal), [0.0]
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr("opposing_signals.training.progress.time.monotonic", lambda: clock[0])
        monkeypatch.setenv("COLUMNS", str(columns))
        progress, module = Progress(name, steps, {"sharpness": Every(5)}), TrainingModule.__new__(TrainingModule)
        object.__setattr__(module, "scalars", {"train_loss": 2.345, "sharpness": 123.4})
        progress.on_train_start(SimpleNamespace(global_step=0), module)
        for step in range(steps):
            for product in range(10 if step % 5 == 0 else 0):
                module.announce(f"curvature, product {product + 1} of 10")
                clock[0] += 8
            clock[0] += 1
            progress.on_train_batch_end(None, module, None, None, 0)
        progress.on_train_end(None, module)
        return screen.getvalue()

    return follow


def test_a_log_has_a_line_now_and_then(run):
    lines = run("a_run", False, 20).splitlines()
    assert lines[0] == "a_run: step 0 of 20"
    assert lines[1] == "a_run: step 0 of 20, curvature, product 4 of 10"
    assert lines[-1] == "a_run: step 20 of 20, 00:00 left, loss 2.35, λ 123"
    assert len(lines) < 20


@pytest.mark.parametrize("columns", [70, 80, 120])
@pytest.mark.parametrize("name", ["short", "a_run_with_a_long_name-scale=paper-optimizer.lr=0.0123456789-{seed}"])
def test_a_bar_keeps_loss_and_sharpness_on_a_narrow_terminal(run, monkeypatch, name, columns):
    """COLUMNS gives the width of a terminal that reports none, as here."""
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (0, -1))
    bars = [bar.strip() for bar in run(name, True, 10, columns).replace("\n", "").split("\r") if bar.strip()]
    assert "0/10" in bars[0]
    assert "curvature, product 3 of 10" in "".join(bars)
    assert all(len(bar) <= columns for bar in bars)
    assert all("loss 2.35, λ 123" in bar for bar in bars if "left" in bar)
    assert "10/10, 00:00 left, loss 2.35, λ 123" in bars[-1]
