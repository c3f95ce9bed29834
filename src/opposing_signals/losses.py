"""Per-sample losses: (outputs ``[n, C]``, targets ``[n]`` or ``[n, C]``) ↦ ``[n]``.

Cross-entropy, with or without label smoothing, is `torch.nn.CrossEntropyLoss(reduction="none")`. In text an example is
a sequence, and ℓ_i is its mean over tokens (`sequence_loss`), so that with sequences of equal length L is the mean over
all tokens. `token_losses` gives them token by token, for tracking.
"""

from torch import Tensor
from torch.nn import functional as F


def square_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f(x) − y‖², summed over outputs; class indices become one-hot vectors (Cohen et al. 2021, §3)."""
    return 0.5 * (outputs - _regression_targets(outputs, targets)).square().sum(1)


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Σ_c log(1 + exp(−s_c f_c(x))), one against the rest, with s_c = 1 for the target's class and −1 elsewhere."""
    targets = _regression_targets(outputs, targets)
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)


def token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every next token.

    Args:
        outputs: ``[n, T, V]`` logits.
        targets: ``[n, T]`` int64.

    Returns:
        ``[n, T]`` −log p(target), in nats.
    """
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").unflatten(0, targets.shape)


def sequence_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """ℓ_i ``[n]``: the mean of a sequence's `token_losses`."""
    return token_losses(outputs, targets).mean(1)


def _regression_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return targets
    return F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
