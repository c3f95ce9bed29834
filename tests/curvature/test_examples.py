import pytest
import torch
from layers import CROSS_ENTROPY, risk_of
from torch import nn

from opposing_signals.curvature.examples import by_chunk, independent_examples
from opposing_signals.errors import InputError
from opposing_signals.risk import EmpiricalRisk


@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_1d", "residual", "layer_norm"])
def test_each_example_alone_has_the_loss_that_it_has_in_its_chunk(layer):
    risk = risk_of(layer)
    expected = risk.sample_losses().losses
    for first in range(0, len(risk), risk.chunk):
        chunk = slice(first, min(first + risk.chunk, len(risk)))
        with independent_examples(risk, chunk):
            for i in range(chunk.start, chunk.stop):
                loss, _ = risk.evaluate(risk.inputs[i : i + 1], risk.targets[i : i + 1])
                torch.testing.assert_close(loss[0], expected[i], rtol=1e-10, atol=1e-13)


def test_points_are_found_in_their_chunks():
    risk = risk_of("linear")
    indices = torch.tensor([9, 0, 3, 10, 3])
    found = {(chunk.start, chunk.stop): indices[positions].tolist() for chunk, positions in by_chunk(risk, indices)}
    assert found == {(0, 4): [0, 3, 3], (8, 11): [9, 10]}


def test_a_batch_norm_with_two_uses_is_refused():
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(norm, nn.Conv2d(2, 2, 1), norm, nn.Flatten(), nn.Linear(32, 3))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, torch.randn(4, 2, 4, 4), torch.zeros(4, dtype=torch.long), chunk=4)
    with (
        pytest.raises(InputError, match="layer '0' is a batch norm in training mode that is used more than once"),
        independent_examples(risk, slice(0, 4)),
    ):
        pass
    model.eval()
    with independent_examples(risk, slice(0, 4)):
        pass
    assert not norm._forward_pre_hooks
