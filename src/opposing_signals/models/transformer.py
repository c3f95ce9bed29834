"""The transformer block of the Vision Transformer and of GPT-2."""

from torch import Tensor, nn
from torch.nn import functional as F

from opposing_signals.errors import InputError
from opposing_signals.values import Count


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: Of a token.
        heads: Of the attention; they share the width.
        bias: Whether linear layers and norms have one.
        is_causal: Whether position t sees only positions up to t.
    """

    def __init__(self, width: Count, heads: Count, bias: bool = True, is_causal: bool = False) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = nn.Linear(width, 3 * width, bias)  # queries, keys and values
        self.projection = nn.Linear(width, width, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width, bias), nn.GELU(), nn.Linear(4 * width, width, bias))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[n, T, width]`` ↦ the same shape."""
        query, key, value = self.attention(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        tokens = tokens + self.projection(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not share the width evenly.

    Raises:
        InputError: They do not.
    """
    if width % heads:
        raise InputError(f"model.heads={heads}: expected a divisor of model.width={width}")
