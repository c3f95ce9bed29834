"""Augmented images are crops of the padded ones, flipped or not, and depend on nothing but seed and step."""

import pytest
import torch
from torch.nn import functional as F

from opposing_signals.data import CropFlip
from opposing_signals.errors import InputError


def images(count: int = 60, size: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def draw(original: torch.Tensor, seen: torch.Tensor, padding: int) -> tuple[int, int, bool]:
    """The crop's corner and whether it is flipped, found by trying all."""
    padded = F.pad(original, [padding] * 4)
    size = original.shape[-1]
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + size, left : left + size]
            for is_flipped in (False, True):
                if torch.equal(seen, crop.flip(2) if is_flipped else crop):
                    return top, left, is_flipped
    raise AssertionError("the image is no crop of the padded original")


def test_every_image_is_a_crop_and_all_shifts_and_both_flips_occur():
    originals = images()
    draws = [draw(a, b, 2) for a, b in zip(originals, CropFlip(padding=2, seed=1)(originals, 3), strict=True)]
    tops, lefts, flips = zip(*draws, strict=True)
    assert set(tops) == set(lefts) == set(range(5))
    assert len(set(draws)) > 25  # shifts in both directions and flips are drawn independently
    assert 0.25 < sum(flips) / len(flips) < 0.75


def test_draws_follow_from_seed_and_step_alone():
    originals = images()
    seen = CropFlip(seed=1)(originals, 3)
    torch.rand(7)
    assert torch.equal(CropFlip(seed=1)(originals, 3), seen)
    assert not torch.equal(CropFlip(seed=1)(originals, 4), seen)
    assert not torch.equal(CropFlip(seed=2)(originals, 3), seen)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_kept(layout):
    assert CropFlip()(images().contiguous(memory_format=layout), 0).is_contiguous(memory_format=layout)


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(InputError, match=r"examples of shape \[7\]: expected images"):
        CropFlip()(torch.zeros(5, 7), 0)
