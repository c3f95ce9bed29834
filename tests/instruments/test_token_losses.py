"""What the instrument writes in both modes, and that a resumed run writes the same."""

from pathlib import Path

import numpy as np
import pytest
import recording
import torch
from composing import composed
from hydra.utils import instantiate
from rounding import RoundedFactors
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposing_signals.configuration import decisive
from opposing_signals.data.token_patterns import PAIRS, PATTERNS, pattern_points
from opposing_signals.errors import DamagedError, InputError, TrainingStoppedError
from opposing_signals.instruments.token_losses import TokenLosses
from opposing_signals.record import Record
from opposing_signals.signals import fallers, risers
from opposing_signals.signals.streaming import LossChangeStream
from opposing_signals.training.job import training_module

TEXT = ("fig35_curvature_share_gpt", "threads=1", "data.sentences=120", "steps=5", "instruments.sharpness.every=2")
BOUNDED = ("instruments.token_losses.keep=7", "instruments.token_losses.sample=30")


def trained(folder: Path, *overrides: str, instruments: bool = True) -> Record:
    return recording.trained(folder, composed(*TEXT, *overrides), instruments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Record:
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def bounded(tmp_path_factory) -> Record:
    return trained(tmp_path_factory.mktemp("bounded"), *BOUNDED)


def test_losses_are_those_of_each_next_token_in_front_of_the_step(whole):
    config = composed(*TEXT)
    dataset = instantiate(config.data)
    model = training_module(config, dataset).risk.model  # θ_0
    logits = model(dataset.inputs)
    expected = F.cross_entropy(logits.transpose(1, 2), dataset.targets, reduction="none").flatten().detach().numpy()
    points, losses = whole["token_points"].values[0], whole["token_loss"]
    assert losses.steps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(losses.values[0], expected[points], rtol=1e-5)
    assert losses.values[0].mean() > losses.values[-1].mean()
    assert whole["sharpness"].steps.tolist() == [0, 2, 4]


def test_the_tracking_set_holds_the_papers_pairs(whole):
    dataset = instantiate(composed(*TEXT).data)
    points = whole["token_points"].values[0]
    assert len(np.unique(points)) == len(points)
    assert len(np.unique(points // 32)) * 32 == len(points)  # whole sequences of 32 tokens
    for pattern in (*PAIRS["quotes"], *PAIRS["colon"]):
        assert np.isin(pattern_points(dataset, pattern), points).sum() >= 3, pattern


def test_bounded_records_hold_the_largest_changes_and_a_sample(whole, bounded):
    points, losses = whole["token_points"].values[0], whole["token_loss"].values
    followed = bounded["token_points"].values[0]
    column = {point: i for i, point in enumerate(points.tolist())}
    named = np.concatenate([pattern_points(instantiate(composed(*TEXT).data), pattern) for pattern in PATTERNS])
    stream = LossChangeStream(1, 30)
    stream.update(points, losses[0], losses[1])
    assert set(followed.tolist()) == {*stream.sample.ids.tolist(), *points[np.isin(points, named)].tolist()}
    assert bounded["token_top"].steps.tolist() == [0, 1, 2, 3, 4]
    for row in range(4):
        before, after = losses[row], losses[row + 1]
        top, top_losses = bounded["token_top"].values[row], bounded["token_top_loss"].values[row]
        for group, of_group, choose in zip(top, top_losses, (risers, fallers), strict=True):
            columns = [column[point] for point in group.tolist()]
            np.testing.assert_allclose(of_group, [before[columns], after[columns]], rtol=1e-5)
            expected = (after - before)[choose(after - before, 7)]
            np.testing.assert_allclose(of_group[1] - of_group[0], expected, rtol=1e-3, atol=1e-6)
        columns = [column[point] for point in followed.tolist()]
        expected = np.stack([before[columns], after[columns]])
        np.testing.assert_allclose(bounded["token_followed"].values[row], expected, rtol=1e-5)
        assert bounded["token_rising"].values[row] == pytest.approx((after > before).mean(), abs=0.01)


def test_training_is_bit_identical_with_and_without(whole, bounded, tmp_path):
    alone = trained(tmp_path, instruments=False)
    assert list(alone) == []
    for record in (whole, bounded):
        recording.assert_same_weights(record, alone)


@pytest.mark.parametrize("settings", [(), BOUNDED], ids=["all", "bounded"])
def test_a_run_killed_in_a_step_ends_with_the_same_bits(settings, whole, bounded, tmp_path, monkeypatch):
    last = "token_top_loss" if settings else "token_loss"
    recording.stopped(tmp_path, composed(*TEXT, *settings), 3, monkeypatch, last)
    recording.assert_same(trained(tmp_path, *settings), bounded if settings else whole)


@pytest.mark.parametrize("settings", [(), BOUNDED], ids=["all", "bounded"])
def test_a_run_does_not_go_on_with_other_tokens(settings, tmp_path, monkeypatch):
    recording.stopped(tmp_path, composed(*TEXT, *settings), 3, monkeypatch)
    monkeypatch.setattr(
        "opposing_signals.instruments.token_losses.PATTERNS", {"newline_after_colon": PATTERNS["newline_after_colon"]}
    )
    with pytest.raises(DamagedError, match="another version of the program, which chose"):
        trained(tmp_path, *settings)


def test_a_diverging_run_ends_as_any_other_and_writes_finite_losses_alone(tmp_path):
    with pytest.raises(TrainingStoppedError, match=r"the training loss is (nan|inf) at step [1-4]"):
        trained(tmp_path, *BOUNDED, "optimizer.lr=1e30")
    record = Record(tmp_path)
    assert record.state.startswith("stopped: the training loss is")
    assert len(record["train_loss"]) > 1
    assert not [quantity for quantity in record if quantity.startswith("token_")]  # no finite loss follows


def test_beside_training_in_16_bits_losses_are_followed_with_rounded_factors(tmp_path):
    config = composed(*TEXT, "risk.precision=bfloat16")
    dataset = instantiate(config.data)
    module = training_module(config, dataset)
    risk = module.risk
    with Record.writing(tmp_path, decisive(config)) as record:
        instrument = TokenLosses(risk, record)
        instrument.prepare(dataset)
    tracked, allowed, at_first = instrument._tracked, [], torch.backends.cuda.matmul.allow_tf32
    assert tracked.precision == "float32"

    def losses():
        with sdpa_kernel(SDPBackend.MATH), instrument._rounding():
            allowed.append(torch.backends.cuda.matmul.allow_tf32)
            exact = tracked.sample_losses().losses
            with RoundedFactors():
                rounded = tracked.sample_losses().losses
            tracked.precision = "bfloat16"
            found = torch.stack([exact, rounded, tracked.sample_losses().losses])
            tracked.precision = "float32"
        return found

    optimizer, batches = module.configure_optimizers(), iter(module.batches)

    def step():
        optimizer.zero_grad()
        risk.backward(next(batches))
        optimizer.step()

    for _ in range(11):
        step()
    before = losses()
    step()
    change, rounded, in_bfloat16 = (losses() - before).flatten(1)
    error, error_of_bfloat16 = (float((seen - change).norm() / change.norm()) for seen in (rounded, in_bfloat16))
    assert 0 < error < 0.01
    assert error < error_of_bfloat16 / 5
    assert all(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 == at_first  # an earlier run in this process may have set it


def test_a_model_taken_as_it_is_keeps_its_precision(tmp_path):
    config = composed(*TEXT, "risk.precision=unchanged")
    dataset = instantiate(config.data)
    risk = training_module(config, dataset).risk
    risk.model.double()
    with Record.writing(tmp_path, decisive(config)) as record:
        TokenLosses(risk, record).prepare(dataset)
    assert {parameter.dtype for parameter in risk.parameters} == {torch.float64}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("instruments.token_losses.sequences=9999",), "sequences=9999: text_demo.* has .*; expected at most"),
        (("instruments.sharpness.examples=9999",), "examples=9999: expected 1 to"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, overrides, message):
    with pytest.raises(Exception, match=message) as caught:
        trained(tmp_path, *overrides)
    assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)
