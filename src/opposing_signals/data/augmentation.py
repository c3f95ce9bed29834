"""Random changes of training images that preserve their class, as a function of the step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from opposing_signals.errors import InputError
from opposing_signals.values import Natural


class CropFlip:
    """A random crop of each padded image, flipped left to right with chance 1/2 (He et al. 2016, section 4.2).

    The border is 0, the mean colour of normalized images.

    Args:
        padding: Pixels added on each side; a crop has the size of the image.
        seed: Of the draws. Those of a step depend only on (seed, step), so a resumed run needs no state.
    """

    def __init__(self, padding: Natural = 4, seed: int = 0) -> None:
        self.padding = padding
        self.seed = seed

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The augmented batch of step ``step``.

        Args:
            images: ``[n, C, H, W]``.
            step: t.

        Returns:
            ``[n, C, H, W]`` in the layout of ``images``.

        Raises:
            InputError: The examples are not images.
        """
        if images.ndim != 4:
            raise InputError(
                f"augmentation of examples of shape {list(images.shape[1:])}: expected images [C, H, W]; leave "
                "augmentation out"
            )
        count, _, height, width = images.shape
        # not the seed of an epoch's order, else the draws would be correlated with it
        state = np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        shifts = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        is_flipped = torch.rand((count, 1), generator=generator) < 0.5
        rows = shifts[0] + torch.arange(height)
        columns = shifts[1] + torch.arange(width)
        columns = torch.where(is_flipped, columns.flip(1), columns)
        padded = F.pad(images, [self.padding] * 4).permute(0, 2, 3, 1)
        example = torch.arange(count, device=images.device)[:, None, None]
        rows, columns = rows.to(images.device), columns.to(images.device)
        seen = padded[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
        return seen.contiguous(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)
