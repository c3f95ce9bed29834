import pytest
import torch
from layers import CROSS_ENTROPY, plain_gradient, risk_of

from opposing_signals.curvature import batch_sharpness


@pytest.mark.parametrize("layer", ["linear", "batch_norm", "layer_norm", "attention"])
@pytest.mark.parametrize("batch", [[3, 8, 1], [0, 4, 4, 10, 2, 7, 9], list(range(11))])
def test_curvature_along_the_batchs_gradient_agrees_with_plain_double_backward(layer, batch):
    """Batches smaller than, larger than and as large as the chunk of 4 and the set; chunks lie within the batch."""
    risk = risk_of(layer)
    measured = batch_sharpness(risk, torch.tensor(batch))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        parts = torch.tensor(batch).split(risk.chunk)
        losses = torch.cat([CROSS_ENTROPY(risk.model(risk.inputs[part]), risk.targets[part]) for part in parts])
    gradient = plain_gradient(losses.mean(), risk)
    direction = gradient.detach() / gradient.detach().norm()
    expected = plain_gradient(gradient @ direction, risk) @ direction
    assert measured == pytest.approx(float(expected.detach()), rel=1e-9)
