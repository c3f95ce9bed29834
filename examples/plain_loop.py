"""Which sentences make the loss of a small GPT spike? A plain loop in the style of nanoGPT: no framework, no loader.

python examples/plain_loop.py
opposing-signals explain outputs/plain_loop
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opposing_signals import Follower
from opposing_signals.data import text_demo
from opposing_signals.data.tokenizers import decode
from opposing_signals.models import gpt


class GPT(nn.Module):
    """Returns logits and the mean loss, as nanoGPT's does."""

    def __init__(self, block: int, vocabulary: int) -> None:
        super().__init__()
        self.network = gpt((block,), vocabulary, width=48, depth=1, heads=2)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(tokens)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def per_sample_loss(model: GPT, batch: tuple[Tensor, Tensor]) -> Tensor:
    """``[n]``: the loss of a sequence is the mean over its tokens."""
    logits, _ = model(*batch)
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), reduction="none").view(len(logits), -1).mean(1)


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/plain_loop", help="of the record")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text = text_demo(sentences=512 * 24 // 40, block=24)
    sequences = list(zip(text.inputs, text.targets, strict=True))
    model = GPT(24, len(text.class_names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    follower = Follower(
        sequences,
        per_sample_loss,
        folder=arguments.folder,
        steps=arguments.steps,
        show=lambda example: decode(example[0].tolist(), text.class_names),
    )
    for _ in range(arguments.steps):
        rows = torch.randint(len(sequences), (64,))
        with follower.step(model, optimizer, batch_indices=rows):
            _, loss = model(text.inputs[rows], text.targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    follower.close()


if __name__ == "__main__":
    main()
