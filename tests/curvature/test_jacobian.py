import pytest
import torch
from constant_statistics import with_constant_statistics
from layers import NETWORKS, ByFunction, risk_of
from torch import nn

from opposing_signals.curvature import jacobian_norms, layer_spectra
from opposing_signals.errors import InputError

POINTS = torch.tensor([10, 1, 6])


@pytest.mark.parametrize("layer", [layer for layer in NETWORKS if layer != "embedding"])
def test_norms_are_the_largest_singular_values_of_the_jacobians(layer):
    measured = jacobian_norms(risk_of(layer), POINTS)
    risk = with_constant_statistics(risk_of(layer))
    for index, norm in zip(POINTS.tolist(), measured, strict=True):
        first = index // risk.chunk * risk.chunk
        inputs = risk.inputs[first : first + risk.chunk].clone().requires_grad_()
        outputs = risk.model(inputs)[index - first]
        rows = [torch.autograd.grad(output, inputs, retain_graph=True)[0][index - first] for output in outputs]
        expected = torch.linalg.svdvals(torch.stack(rows).flatten(1))[0]
        torch.testing.assert_close(norm, expected, rtol=1e-9, atol=1e-12)


def test_inputs_are_left_as_they_are():
    risk = risk_of("conv")
    before = risk.inputs.clone()
    jacobian_norms(risk, POINTS)
    assert torch.equal(risk.inputs, before)
    assert not risk.inputs.requires_grad


def test_a_derivative_that_is_not_that_of_the_values_is_refused():
    """A straight-through estimator."""
    risk = risk_of("tanh")
    risk.model.append(ByFunction(lambda values: values + (values.round() - values).detach()))
    with pytest.raises(InputError, match=r"change of outputs with inputs .* finite differences of the outputs"):
        jacobian_norms(risk, POINTS)


def test_tokens_have_no_jacobian():
    with pytest.raises(InputError, match="no derivative in the inputs"):
        jacobian_norms(risk_of("embedding"), POINTS)


def spectra(*layers: nn.Module):
    return layer_spectra(nn.Sequential(*layers).double())


def with_weight(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def test_norms_and_alignments_of_linear_layers_agree_with_singular_value_decompositions():
    torch.manual_seed(0)
    layers = [nn.Linear(7, 5), nn.Linear(5, 6), nn.Linear(6, 3)]
    found = spectra(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    assert found.names == ["0", "2", "4"]
    decompositions = [torch.linalg.svd(layer.weight) for layer in layers]
    torch.testing.assert_close(found.norms, torch.stack([s[0] for _, s, _ in decompositions]), rtol=1e-12, atol=0)
    for alignment, (left, _, _), (_, _, right) in zip(
        found.alignments, decompositions, decompositions[1:], strict=False
    ):
        torch.testing.assert_close(alignment, (left[:, 0] @ right[0]).abs(), rtol=1e-9, atol=1e-12)


def test_aligned_layers_have_alignment_one_and_others_zero():
    left, right = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0][:2]
    first = with_weight(nn.Linear(4, 4), 3 * torch.outer(left, right))
    same = with_weight(nn.Linear(4, 4), 2 * torch.outer(right, left))
    other = with_weight(nn.Linear(4, 4), 5 * torch.outer(left, left))
    found = spectra(first, same, other)
    torch.testing.assert_close(found.norms, torch.tensor([3.0, 2.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(found.alignments, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_convolution_is_compared_in_the_subspace_of_a_channel():
    """Its right singular vector spreads over the kernel; what counts is how much of it reads the channels u."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 2, 3).double()
    left = torch.linalg.svd(first.weight.flatten(1))[0][:, 0]
    right = torch.linalg.svd(second.weight.flatten(1))[2][0].view(4, 9)
    found = spectra(first, second)
    assert found.norms[0] == pytest.approx(float(torch.linalg.matrix_norm(first.weight.detach().flatten(1), 2)))
    assert float(found.alignments) == pytest.approx(float((left @ right).detach().norm()))
    reading = with_weight(second, torch.einsum("o,c,hw->ochw", torch.randn(2), left, torch.randn(3, 3).double()))
    assert float(spectra(first, reading).alignments) == pytest.approx(1)


def test_a_linear_layer_behind_flattened_channels_reads_each_channel_at_several_places():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 1).double()
    left = torch.linalg.svd(first.weight.flatten(1))[0][:, 0]
    reading = with_weight(nn.Linear(16, 3), torch.outer(torch.randn(3), torch.outer(left, torch.randn(4)).flatten()))
    assert float(spectra(first, nn.Flatten(), reading).alignments) == pytest.approx(1)


def test_shapes_that_do_not_fit_have_no_alignment():
    assert spectra(nn.Linear(4, 6), nn.Linear(9, 2)).alignments.isnan().all()
    assert spectra(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2)).alignments.isnan().all()


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="no linear layer and no convolution"):
        layer_spectra(nn.LayerNorm(3))
