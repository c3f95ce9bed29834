"""Text streamed from the Hugging Face hub."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Literal

from filelock import FileLock

from opposing_signals.data.dataset import Dataset
from opposing_signals.data.text import openwebtext
from opposing_signals.data.tokenizers import END_OF_TEXT
from opposing_signals.errors import InputError
from opposing_signals.files import cache_folder
from opposing_signals.values import Count


def text_stream(
    hub: str = "Skylion007/openwebtext",
    documents: Count = 100_000,
    column: str = "text",
    tokenizer: Literal["gpt2", "characters"] = "gpt2",
    vocabulary: Count | None = None,
    block: Count = 1024,
    sequences: Count | None = None,
    root: str | None = None,
) -> Dataset:
    """The first documents of a data set on the Hugging Face hub, streamed once into a text file in the user's cache.

    Args:
        hub: Name of the data set; its split ``train`` is read.
        documents: Number of documents.
        column: The data set's column of texts.
        tokenizer: See `openwebtext`.
        vocabulary: See `openwebtext`.
        block: See `openwebtext`.
        sequences: See `openwebtext`.
        root: Folder of GPT-2's ``encoder.json``.

    Raises:
        InputError: The package `datasets` is not installed, the data set cannot be read or has no such column, or
            `openwebtext` refuses the text.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{hub}-{column}")
    path = cache_folder() / "texts" / f"{name}-{documents}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # the jobs of a sweep start together
        if not path.is_file():
            _download(path, hub, documents, column)
    return openwebtext(tokenizer, vocabulary, block, sequences, str(path), root)


def _download(path: Path, hub: str, documents: int, column: str) -> None:
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            "data=text_stream needs datasets: install it by `pip install datasets`, or give a UTF-8 "
            "text file by data=openwebtext data.path=FILE"
        ) from None
    unfinished = path.with_name(path.name + ".part")
    try:
        stream = load_dataset(hub, split="train", streaming=True)
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            for document in islice(stream, documents):
                if column not in document:
                    raise InputError(f"data.column={column}: {hub} has {', '.join(document)}")
                file.write(document[column] + END_OF_TEXT)
    except InputError:
        unfinished.unlink(missing_ok=True)
        raise
    except Exception as error:  # of many kinds: the network's, the hub's, the file format's
        unfinished.unlink(missing_ok=True)
        raise InputError(
            f"data.hub={hub} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}); give a "
            "UTF-8 text file by data=openwebtext data.path=FILE"
        ) from error
    unfinished.replace(path)
