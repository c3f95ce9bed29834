"""A small Vision Transformer for 32x32 images."""

import torch
from torch import Tensor, nn

from opposing_signals.errors import InputError
from opposing_signals.models.transformer import Block, check_heads
from opposing_signals.values import Count


class VisionTransformer(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021) on patches of 4x4 pixels, without dropout.

    The paper says "small Vision Transformer" and leaves the rest open. As in the original, a learned class token
    precedes the patches, positions are learned, and the head reads the class token; weights of linear layers have
    torch's default initialization, token and positions a standard deviation of 0.02. A network of 8 blocks has 104
    parameter tensors; the paper counts 106 for its own.

    Args:
        input_shape: (channels, height, width) of an image.
        outputs: Number of classes.
        patch: Side of a patch in pixels.
        width: Of a token.
        depth: Number of blocks.
        heads: Of the attention.

    Raises:
        InputError: The patches do not tile the image, or the heads do not share the width evenly.
    """

    def __init__(
        self, input_shape: tuple[int, ...], outputs: int, patch: Count, width: Count, depth: Count, heads: int
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if rows % patch or columns % patch:
            raise InputError(f"model.patch={patch}: expected a divisor of the image's sides, {rows} and {columns}")
        check_heads(width, heads)
        self.embedding = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (rows // patch) * (columns // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """``[n, channels, height, width]`` ↦ logits ``[n, outputs]``."""
        patches = self.embedding(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


def vit(
    input_shape: tuple[int, ...], outputs: int, patch: Count = 4, width: Count = 192, depth: Count = 8, heads: Count = 3
) -> VisionTransformer:
    """A small Vision Transformer (see `VisionTransformer`)."""
    return VisionTransformer(input_shape, outputs, patch, width, depth, heads)
