import math

import pytest
import torch
import torch.nn.functional as F
from layers import plain_curvature, plain_gradient, plain_losses

from opposing_signals.curvature import gradient_norms, sample_curvature
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import sequence_loss, token_losses
from opposing_signals.models import gpt
from opposing_signals.models.gpt import GPT


def small(**sizes) -> GPT:
    torch.manual_seed(0)
    return gpt((6,), 11, **{"width": 8, "depth": 2, "heads": 2, **sizes})


def lively_risk(examples: int = 5, chunk: int = 2) -> EmpiricalRisk:
    """Weights large enough that every second-order term counts."""
    model = small()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.5)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (examples, 7), generator=generator)
    return EmpiricalRisk(model, sequence_loss, tokens[:, :-1], tokens[:, 1:], chunk=chunk, precision="float64")


def directions(risk: EmpiricalRisk, count: int) -> torch.Tensor:
    size = sum(p.numel() for p in risk.parameters)
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("block", "vocabulary", "sizes", "parameters", "tensors"),
    [
        (1024, 50257, {"width": 768, "depth": 12, "heads": 12}, 124_337_664, 75),  # GPT-2 small less its 102,144 biases
        (256, 65, {}, 10_745_088, 39),  # nanoGPT's character model; the paper counts 39 tensors
    ],
)
def test_sizes_are_the_standard_ones(block, vocabulary, sizes, parameters, tensors):
    with torch.device("meta"):
        model = gpt((block,), vocabulary, **sizes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors


def test_embedding_positions_and_tied_head():
    model = small(depth=0).double()
    tokens = torch.tensor([[3, 1, 3, 10]])
    hidden = model.embedding.weight[tokens] + model.positions[:4]
    centred = hidden - hidden.mean(-1, keepdim=True)
    normalized = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model(tokens), normalized @ model.embedding.weight.T)


@pytest.mark.parametrize("changed", range(6))
def test_a_later_token_leaves_earlier_logits(changed):
    model = small().double()
    tokens = torch.randint(11, (3, 6))
    other = tokens.clone()
    other[:, changed] = (tokens[:, changed] + 1) % 11
    logits, altered = model(tokens), model(other)
    assert logits.shape == (3, 6, 11)
    torch.testing.assert_close(altered[:, :changed], logits[:, :changed], rtol=0, atol=1e-14)
    assert (altered[:, changed:] - logits[:, changed:]).abs().amax((0, 2)).min() > 1e-6


def test_initialization_is_that_of_gpt2():
    torch.manual_seed(0)
    model = gpt((256,), 300, width=128, depth=3, heads=2)
    for name, parameter in model.named_parameters():
        residual = ".projection." in name or ".mlp.2." in name
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            expected = 0.02 / math.sqrt(6) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * expected, name
    loss = token_losses(model(torch.randint(300, (2, 256))), torch.randint(300, (2, 256))).mean()
    assert loss.item() == pytest.approx(math.log(300), rel=0.02)


def test_hessian_products_agree_with_plain_double_backward():
    risk = lively_risk()
    vectors = directions(risk, 2)
    mean = plain_losses(risk, sequence_loss).mean()
    gradient = plain_gradient(mean, risk)
    expected = []
    for v in vectors:
        rows = torch.autograd.grad(gradient @ v, risk.parameters, retain_graph=True, materialize_grads=True)
        expected.append(torch.cat([row.reshape(-1) for row in rows]))

    measured = risk.hessian_products(vectors)

    torch.testing.assert_close(measured.products, torch.stack(expected), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(measured.gradient, gradient.detach(), rtol=1e-9, atol=1e-12)
    risk.backward()
    trained = torch.cat([p.grad.reshape(-1) for p in risk.parameters])
    torch.testing.assert_close(measured.gradient, trained, rtol=0, atol=0)


def test_slopes_curvatures_and_gradient_norms_agree_with_a_loop_over_the_sequences():
    risk = lively_risk()
    (v,) = directions(risk, 1)
    losses = plain_losses(risk, sequence_loss)
    gradients = torch.stack([plain_gradient(loss, risk).detach() for loss in losses])
    curvatures = torch.stack([plain_curvature(loss, risk, v) for loss in losses])

    measured = sample_curvature(risk, v)

    torch.testing.assert_close(measured.losses, losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(measured.slopes, gradients @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.curvatures, curvatures, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient_norms(risk), gradients.norm(dim=1), rtol=1e-9, atol=1e-12)


def test_a_sequence_counts_as_the_mean_of_its_tokens():
    logits, targets = torch.randn(3, 5, 7, dtype=torch.float64), torch.randint(7, (3, 5))
    by_token = token_losses(logits, targets)
    probabilities = logits.softmax(-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(by_token, -probabilities.log())
    torch.testing.assert_close(sequence_loss(logits, targets), by_token.mean(1))
    torch.testing.assert_close(sequence_loss(logits, targets).mean(), F.cross_entropy(logits.mT, targets))


def test_a_vocabulary_may_be_padded():
    model = small(vocabulary=16)
    assert model(torch.randint(11, (2, 6))).shape == (2, 6, 16)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocabulary": 10}, "model.vocabulary=10: the data have 11 tokens; expected at least as many"),
        ({"heads": 3}, "model.heads=3: expected a divisor of model.width=8"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        small(**sizes)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"examples of shape \[3, 32, 32\]: model=gpt takes sequences"):
        gpt((3, 32, 32), 10)
    with pytest.raises(InputError, match="sequences of 7 tokens: expected at most 6"):
        small()(torch.zeros(1, 7, dtype=torch.int64))
