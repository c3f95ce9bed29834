import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opposing_signals.curvature.normalization import captured, frozen
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.models import resnet18


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return resnet18((3, 32, 32), 10, width=2).double()


def test_an_example_of_the_chunk_gets_its_training_output_back() -> None:
    model, images = small_resnet(), torch.randn(6, 3, 32, 32, dtype=torch.float64)
    with captured(model) as statistics:
        outputs = model(images)
    with frozen(model, statistics):
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, outputs, rtol=1e-9, atol=1e-12)


def test_statistics_of_a_bfloat16_pass_are_float32() -> None:
    model, images = small_resnet().float(), torch.randn(6, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        with captured(model) as statistics:
            outputs = model(images)
        with frozen(model, statistics):
            alone = torch.cat([model(image[None]) for image in images])
    assert {tensor.dtype for pair in statistics for tensor in pair} == {torch.float32}
    torch.testing.assert_close(alone, outputs, rtol=0.05, atol=0.05)


def test_only_the_first_chunk_is_captured() -> None:
    model, images = small_resnet(), torch.randn(8, 3, 32, 32, dtype=torch.float64)
    with captured(model) as statistics:
        first = model(images[:4])
        model(images[4:])
    with frozen(model, statistics):
        torch.testing.assert_close(model(images[:4]), first, rtol=1e-9, atol=1e-12)


def test_running_statistics_and_mode_stay() -> None:
    model, images = small_resnet(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with captured(model) as statistics:
        model(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen(model, statistics):
        model(images[:1])
    assert model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not any("forward" in vars(module) for module in model.modules())


def test_evaluation_mode_has_nothing_to_freeze() -> None:
    model = small_resnet().eval()
    with captured(model) as statistics:
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert statistics == []


class Twice(nn.Module):
    """One batch-norm module used twice, and one functional batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, values):
        values = self.norm(values).tanh()
        values = self.norm(3 * values + 1)
        return self.head(F.batch_norm(values.exp(), None, None, training=True))


def test_every_use_has_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    model, values = Twice().double(), torch.randn(6, 3, dtype=torch.float64)
    with captured(model) as statistics:
        outputs = model(values)
    assert len(statistics) == 3
    with frozen(model, statistics):
        for _ in range(2):
            alone = torch.cat([model(value[None]) for value in values])
            torch.testing.assert_close(alone, outputs, rtol=1e-9, atol=1e-12)


def test_more_uses_than_statistics_are_an_error() -> None:
    model = small_resnet()
    message = "more often for an example than the 0 times for its chunk"
    with frozen(model, []), pytest.raises(InputError, match=message):
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64))


def test_a_pass_with_curvature_has_the_same_uses_and_bits() -> None:
    def risk():
        torch.manual_seed(0)
        images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
        model = resnet18((3, 32, 32), 10, width=2)
        return EmpiricalRisk(model, nn.CrossEntropyLoss(reduction="none"), images, labels, chunk=4)

    plain, watched = risk(), risk()
    vectors = torch.ones(1, sum(parameter.numel() for parameter in plain.parameters))
    watched.check_products()
    with captured(watched.model) as statistics:
        seen = watched.backward_with_products(vectors)
    assert len(statistics) == 20
    expected = plain.backward_with_products(vectors)
    assert torch.equal(seen.products, expected.products)
    assert torch.equal(seen.gradient, expected.gradient)
    with frozen(watched.model, statistics):
        outputs = watched.outputs(watched.inputs[:4])
    torch.testing.assert_close(outputs, seen.outputs[:4], rtol=1e-4, atol=1e-5)
