"""Which sentences pull a small language model back and forth? Its batches are dictionaries, its optimizer is AdamW.

python examples/language_model.py
opposing-signals explain outputs/language_model
"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from opposing_signals import OpposingSignals
from opposing_signals.data import text_demo
from opposing_signals.data.tokenizers import decode
from opposing_signals.models import gpt

from lightning.pytorch import LightningModule, Trainer  # isort: skip  (last: see docs/own_model.md, "Imports")


class Sequences(Dataset):
    """Dictionaries of tokens and the tokens that follow."""

    def __init__(self, block: int, sequences: int) -> None:
        self.text = text_demo(sentences=sequences * block // 40, block=block)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.text.inputs[index], "next": self.text.targets[index]}

    def read(self, example: dict[str, torch.Tensor]) -> str:
        """The text of an example, for the report."""
        return decode(example["tokens"].tolist(), self.text.class_names)


class LanguageModel(LightningModule):
    """A character model with one block."""

    def __init__(self, block: int, vocabulary: int) -> None:
        super().__init__()
        self.network = gpt((block,), vocabulary, width=48, depth=1, heads=2)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean over all tokens."""
        return per_sample_loss(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A learning rate large enough for spikes within a few seconds."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def per_sample_loss(module: LanguageModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """``[n]``: the loss of a sequence is the mean over its tokens."""
    logits = module.network(batch["tokens"])
    return (
        F.cross_entropy(logits.flatten(0, 1), batch["next"].flatten(), reduction="none").view(len(logits), -1).mean(1)
    )


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/language_model", help="of the record")
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = Sequences(block=24, sequences=512)
    signals = OpposingSignals(
        data,
        per_sample_loss,
        folder=arguments.folder,
        track=256,
        every=2,
        budget=0.5,  # the default, 5%, shows little in so short a training
        show=data.read,
    )
    trainer = Trainer(
        max_steps=arguments.steps,
        callbacks=[signals],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(24, len(data.text.class_names)), DataLoader(data, batch_size=64, shuffle=True))


if __name__ == "__main__":
    main()
