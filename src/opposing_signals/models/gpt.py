"""GPT-2 for next-token prediction, from a character model to GPT-2 small."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opposing_signals.errors import InputError
from opposing_signals.models.transformer import Block, check_heads
from opposing_signals.values import Count


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) as nanoGPT pretrains it: no biases, no dropout, and a head tied to the embedding.

    Positions are learned. Initial weights are normal with standard deviation 0.02, or 0.02/√(2 depth) for the two
    projections into each block's residual stream. A network of 6 blocks has 39 parameter tensors, the number that the
    paper counts.

    Args:
        block: T, the largest number of tokens in a context.
        vocabulary: V, the number of different tokens; for the others see `gpt`.

    Raises:
        InputError: The heads do not share the width evenly.
    """

    def __init__(self, block: int, vocabulary: int, width: Count, depth: Count, heads: Count) -> None:
        super().__init__()
        check_heads(width, heads)
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(block, width))
        self.blocks = nn.Sequential(*(Block(width, heads, bias=False, is_causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("projection.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if is_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[n, t]`` int64 with t <= T ↦ logits of each next token ``[n, t, V]``.

        Raises:
            InputError: The sequences are longer than T.
        """
        length, block = tokens.shape[1], len(self.positions)
        if length > block:
            raise InputError(f"sequences of {length} tokens: expected at most {block}, the block of this model")
        hidden = self.embedding(tokens) + self.positions[:length]
        return F.linear(self.norm(self.blocks(hidden)), self.embedding.weight)


def gpt(
    input_shape: tuple[int, ...],
    outputs: int,
    width: Count = 384,
    depth: Count = 6,
    heads: Count = 6,
    vocabulary: Count | None = None,
) -> GPT:
    """GPT-2 on contexts of ``input_shape = (T,)`` tokens (see `GPT`).

    Args:
        input_shape: (T,).
        outputs: Number of tokens in the data's vocabulary.
        width: Of a token; 768 in GPT-2 small.
        depth: Number of blocks; 12 in GPT-2 small.
        heads: Of the attention; 12 in GPT-2 small.
        vocabulary: V, which may be larger than ``outputs``: GPUs multiply faster with 50,304 than with GPT-2's 50,257.
            None is ``outputs``.

    Raises:
        InputError: The data are not sequences of tokens, or have tokens that the vocabulary lacks; the heads do not
            share the width evenly.
    """
    if len(input_shape) != 1:
        raise InputError(
            f"examples of shape {list(input_shape)}: model=gpt takes sequences of tokens, as data=text_demo"
        )
    if vocabulary is not None and vocabulary < outputs:
        raise InputError(
            f"model.vocabulary={vocabulary}: the data have {outputs} tokens; expected at least as many, or null"
        )
    return GPT(input_shape[0], outputs if vocabulary is None else vocabulary, width, depth, heads)
