"""Which sentences make the loss of a fine-tuning spike? transformers' Trainer on a small random GPT-2: no download.

python examples/transformers_finetune.py
opposing-signals explain outputs/transformers
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from opposing_signals.data import text_demo
from opposing_signals.data.tokenizers import decode
from opposing_signals.follow.transformers import OpposingSignals

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # isort: skip


class Sequences(Dataset):
    """Dictionaries of tokens, as the model takes them."""

    def __init__(self, block: int, sequences: int) -> None:
        self.text = text_demo(sentences=sequences * block // 40, block=block)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.text.inputs[index], "labels": self.text.inputs[index]}

    def read(self, example: dict[str, Tensor]) -> str:
        """The text of an example, for the report."""
        return decode(example["input_ids"].tolist(), self.text.class_names)


def per_sample_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """``[n]``: the loss of a sequence is the mean over its tokens, without padding (-100)."""
    logits, targets = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    return losses.sum(1) / (targets != -100).sum(1).clamp(min=1)


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/transformers", help="of the record")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = Sequences(block=24, sequences=512)
    configuration = GPT2Config(
        vocab_size=len(data.text.class_names), n_positions=24, n_embd=48, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    signals = OpposingSignals(data, per_sample_loss, folder=arguments.folder, show=data.read)
    trainer = Trainer(
        GPT2LMHeadModel(configuration),
        TrainingArguments(
            output_dir=f"{arguments.folder}_checkpoints",
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
        callbacks=[signals],
    )
    trainer.train()


if __name__ == "__main__":
    main()
