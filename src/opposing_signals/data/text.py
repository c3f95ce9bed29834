"""Text as a data set: sequences of tokens, each token with the one that follows."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock

from opposing_signals.data.dataset import Dataset
from opposing_signals.data.tokenizers import Tokenizer, characters, find_file, gpt2, places
from opposing_signals.errors import InputError
from opposing_signals.files import cache_folder
from opposing_signals.values import Count, Fraction, Seed

_SAMPLE = "openwebtext_sample.txt"
_PIECE = 1 << 22  # bytes decoded and tokenized at a time


def openwebtext(
    tokenizer: Literal["gpt2", "characters"] = "gpt2",
    vocabulary: Count | None = None,
    block: Count = 1024,
    sequences: Count | None = None,
    path: str | None = None,
    root: str | None = None,
) -> Dataset:
    """A sample of OpenWebText (Gokaslan and Cohen 2019), or a text file of the user, as sequences of tokens.

    The text is tokenized once; its tokens are kept in the user's cache as a memory-mapped ``.npy``, named after the
    tokenizer and the text's checksum. Documents are concatenated, separated by ``<|endoftext|>`` where the file has
    that marker, and cut into consecutive sequences without overlap; a remainder shorter than a sequence is dropped.

    Args:
        tokenizer: ``"gpt2"`` (see `tokenizers.gpt2`) or ``"characters"``, which needs no file.
        vocabulary: V: only the first V tokens of ``"gpt2"``; None for all 50,257.
        block: T, tokens in a sequence.
        sequences: N: only the first N sequences; None for all.
        path: A UTF-8 text file; None for ``openwebtext_sample.txt``, which is looked for in ``root``, in the folder
            that ``OPPOSING_SIGNALS_DATA`` names and in the user's cache, or in their sub-folders ``text``.
        root: Folder of the sample and of GPT-2's ``encoder.json``.

    Returns:
        ``inputs`` and ``targets`` ``[N, T]`` int64, the second one token ahead; ``class_names`` are the tokens' texts
        (see `tokenizers.decode`). No test set.

    Raises:
        InputError: The text is missing, empty, not UTF-8 or shorter than one sequence; files of the tokenizer are
            missing; the cached tokens do not match their vocabulary.
    """
    if vocabulary is not None and tokenizer != "gpt2":
        raise InputError(f"data.vocabulary={vocabulary}: expected null, characters are as many as the text has")
    found = find_file(_SAMPLE, "text", root) if path is None else Path(path).expanduser()
    if found is None:
        raise InputError(f"no {_SAMPLE} in {places(root)}; give a UTF-8 text file of your own by data.path=FILE")
    kind = tokenizer if vocabulary is None else f"{tokenizer}-{vocabulary}"
    tokens, names = _tokenized(found, kind, vocabulary, root)
    return _sequences(found.name, kind, tokens, names, block, sequences)


def text_demo(
    sentences: Count = 4000,
    block: Count = 64,
    period_inside: Fraction = 0.7,
    newline_after_colon: Fraction = 0.5,
    seed: Seed = 0,
) -> Dataset:
    """Random English sentences with the paper's two pairs of opposing tokens, one token per character.

    A quotation ends in ``."`` or in ``".``, and a colon is followed by a new line or by " the"; which of the two is
    random, so that no context predicts it. Equal arguments give equal text on every machine.

    Args:
        sentences: Number of sentences, about 45 characters each.
        block: T, characters in a sequence.
        period_inside: Fraction of quotations with the period before the quotation mark.
        newline_after_colon: Fraction of colons that begin a list of lines.
        seed: Of the drawing, not of the training.

    Returns:
        ``inputs`` and ``targets`` ``[N, T]`` int64, the second one character ahead; no test set.

    Raises:
        InputError: The text is shorter than one sequence.
    """
    text = _drawn_text(np.random.default_rng(seed), sentences, period_inside, newline_after_colon)
    tokenizer = characters([text])
    name = f"text_demo, seed {seed}"
    return _sequences(name, tokenizer.name, tokenizer.encode(text), tokenizer.names, block, None)


def _sequences(
    text: str, tokenizer: str, tokens: np.ndarray, names: tuple[str, ...], block: int, sequences: int | None
) -> Dataset:
    available = (len(tokens) - 1) // block
    if available < 1:
        raise InputError(
            f"data.block={block}: {text} has {len(tokens)} tokens, fewer than one sequence and the token behind it; "
            f"expected at most {len(tokens) - 1}, or a longer text"
        )
    if len(names) < 2:
        raise InputError(
            f"{text}: one character alone, over and over; expected a text in which something is to predict"
        )
    count = available if sequences is None else sequences
    if not 1 <= count <= available:
        raise InputError(
            f"data.sequences={count}: {text} has {available} sequences of {block} tokens; expected 1 to {available}, "
            "or null for all"
        )
    used = tokens[: count * block + 1]
    checksum = hashlib.sha256(f"{tokenizer}, {block} tokens\n".encode())
    checksum.update(used.astype("<u4").tobytes())
    stream = torch.from_numpy(used.astype(np.int64))
    return Dataset(
        name=f"{text} ({count} of {available} sequences of {block} tokens, {tokenizer})",
        # Views of one tensor: the targets take no further memory.
        inputs=stream[:-1].view(count, block),
        targets=stream[1:].view(count, block),
        checksum=checksum.hexdigest(),
        class_names=names,
    )


# Tokens on disk -----------------------------------------------------------------------------------------------------


def _tokenized(path: Path, kind: str, vocabulary: int | None, root: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Tokens ``[n]``, mapped from disk, and the text of each token of the vocabulary."""
    sha256 = _checksum(path)
    array = cache_folder() / "tokens" / f"{path.stem}-{kind}-{sha256[:16]}.npy"
    listing = array.with_suffix(".json")  # written last: if it exists, the tokens are complete
    try:
        array.parent.mkdir(parents=True, exist_ok=True)
        # The jobs of a sweep start together: one of them tokenizes, the others wait and find the tokens.
        with FileLock(array.with_suffix(".lock")):
            if not listing.is_file():
                made = characters(_pieces(path)) if kind == "characters" else gpt2(root, vocabulary)
                with tempfile.TemporaryDirectory(dir=array.parent) as scratch:
                    _write_tokens(path, made, Path(scratch) / "tokens.npy")
                    (Path(scratch) / "names.json").write_text(json.dumps({"sha256": sha256, "names": made.names}))
                    os.replace(Path(scratch) / "tokens.npy", array)
                    os.replace(Path(scratch) / "names.json", listing)
    except OSError as error:
        raise InputError(
            f"the tokens of {path} cannot be kept in {array.parent} ({error}); let the environment variable "
            "XDG_CACHE_HOME name a folder that can be written"
        ) from error
    return _read_tokens(array, listing)


def _checksum(path: Path) -> str:
    """sha256 of a file that is not empty."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or /dev/zero would be read forever
        raise InputError(f"data.path={path}: no regular file; expected a UTF-8 text file")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.sha256()
            while data := file.read(_PIECE):
                sha256.update(data)
            if file.tell() == 0:
                raise InputError(f"{path}: the file is empty; expected UTF-8 text")
    except OSError as error:
        raise InputError(f"data.path={path}: cannot be read ({error.strerror}); expected a UTF-8 text file") from error
    return sha256.hexdigest()


def _pieces(path: Path) -> Iterator[str]:
    """The text in pieces, cut only before a new line that follows visible text: no token of GPT-2 crosses that."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, rest = 0, ""
    with path.open("rb") as file:
        while True:
            data = file.read(_PIECE)
            undecoded = len(decoder.getstate()[0])
            try:
                rest += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                byte, at = error.object[error.start], position - undecoded + error.start
                raise InputError(
                    f"{path}: not UTF-8: byte 0x{byte:02x} at position {at}; convert it, for instance by "
                    "`iconv -f latin1 -t utf-8`"
                ) from None
            position += len(data)
            if not data:
                yield rest
                return
            cut = rest.rfind("\n")
            while cut > 0 and rest[cut - 1].isspace():
                cut = rest.rfind("\n", 0, cut)
            if cut > 0:
                yield rest[:cut]
                rest = rest[cut:]


def _write_tokens(path: Path, tokenizer: Tokenizer, target: Path) -> None:
    """Tokenize piece by piece, so that memory does not grow with the text."""
    kind = np.dtype("<u2" if len(tokenizer.names) <= 1 << 16 else "<u4")
    count = 0
    with tempfile.TemporaryFile(dir=target.parent) as raw, target.open("wb") as file:
        for piece in _pieces(path):
            tokens = tokenizer.encode(piece).astype(kind)
            raw.write(tokens.tobytes())
            count += len(tokens)
        header = {"descr": kind.str, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        raw.seek(0)
        shutil.copyfileobj(raw, file)


def _read_tokens(array: Path, vocabulary: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    again = f"delete {array} and {vocabulary.name} beside it to have them made again"
    try:
        names = tuple(json.loads(vocabulary.read_text())["names"])
        tokens = np.load(array, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{array}: unreadable tokens ({error}); {again}") from error
    largest = int(tokens.max())
    if largest >= len(names):
        raise InputError(f"{array}: token {largest} is outside the vocabulary of {len(names)}; {again}")
    return tokens, names


# Drawn sentences ----------------------------------------------------------------------------------------------------

_PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
_NOUNS = ("river", "lamp", "garden", "letter", "bridge", "window", "violin", "kettle", "horse", "ladder", "map", "coat")
_ADJECTIVES = ("quiet", "old", "bright", "narrow", "heavy", "green", "broken", "warm")
_VERBS = ("painted", "found", "carried", "forgot", "repaired", "sold")
_LISTS = ("packed two things", "asked for two gifts", "remembered two words", "drew two pictures")


def _drawn_text(rng: np.random.Generator, sentences: int, period_inside: float, newline_after_colon: float) -> str:
    def one_of(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    def quotation() -> str:
        end = '."' if rng.random() < period_inside else '".'
        return f'{one_of(_PEOPLE)} called the {one_of(_NOUNS)} "{one_of(_ADJECTIVES)}{end} '

    def enumeration() -> str:
        start, first, second = f"{one_of(_PEOPLE)} {one_of(_LISTS)}:", one_of(_NOUNS), one_of(_NOUNS)
        if rng.random() < newline_after_colon:
            return f"{start}\n- {first}\n- {second}\n"
        return f"{start} the {first} and the {second}. "

    def statement() -> str:
        return f"{one_of(_PEOPLE)} {one_of(_VERBS)} the {one_of(_ADJECTIVES)} {one_of(_NOUNS)}. "

    kinds = (quotation, enumeration, statement)
    return "".join(kinds[rng.integers(len(kinds))]() for _ in range(sentences))
