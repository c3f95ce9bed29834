"""Tokenizers: GPT-2's byte-pair encoding, and characters."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opposing_signals.data.cifar10 import ENVIRONMENT_VARIABLE
from opposing_signals.errors import InputError
from opposing_signals.files import cache_folder

ENCODER_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
END_OF_TEXT = "<|endoftext|>"
_BYTES, _TOKENS = 256, 50257  # of GPT-2: single-byte tokens, and all tokens

# GPT-2's published pattern; tiktoken's possessive form of it, which splits identically and runs faster.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into tokens.

    Attributes:
        name: ``"gpt2"``, ``"gpt2-V"`` for its first V tokens, or ``"characters"``.
        names: The text of each of the V tokens. Bytes that are not text on their own, such as part of a character, are
            lone surrogates (`errors="surrogateescape"`), so that nothing is lost: see `decode`.
        encode: Text ↦ tokens ``[n]``, whole numbers below V.
    """

    name: str
    names: tuple[str, ...]
    encode: Callable[[str], np.ndarray]


def decode(tokens: Iterable[int], names: tuple[str, ...]) -> str:
    """The text of ``tokens``; a character cut off at either end becomes U+FFFD.

    Args:
        tokens: Whole numbers below V.
        names: See `Tokenizer`; ``class_names`` of a `Dataset`.
    """
    joined = "".join(names[token] for token in tokens)
    return joined.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def characters(pieces: Iterable[str]) -> Tokenizer:
    """One token per character; the vocabulary is the characters of ``pieces``, in the order of code points."""
    alphabet: set[str] = set()
    for piece in pieces:
        alphabet.update(piece)
    names = tuple(sorted(alphabet))
    number = np.zeros(ord(names[-1]) + 1, dtype=np.uint32)
    number[[ord(name) for name in names]] = np.arange(len(names))

    def encode(text: str) -> np.ndarray:
        return number[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]

    return Tokenizer("characters", names, encode)


def gpt2(root: str | None = None, vocabulary: int | None = None) -> Tokenizer:
    """GPT-2's byte-pair encoding with 50,257 tokens (Radford et al. 2019); ``<|endoftext|>`` is one of them.

    Byte-pair encoding adds its tokens in the order of its merges, so fewer merges give a smaller vocabulary of the same
    kind: any text can be encoded, with more tokens. All token numbers except that of ``<|endoftext|>``, the last one,
    remain those of GPT-2.

    It is built from OpenAI's file ``encoder.json`` (whose numbers are the ranks of the merges). `find_file` looks for
    it, also in sub-folders ``gpt2_bpe``; it is never downloaded.

    Args:
        root: Folder of the file (configuration field ``data.root``).
        vocabulary: V, the number of tokens; None for all.

    Raises:
        InputError: The file is missing or altered, tiktoken is not installed, or V is out of range.
    """
    if vocabulary is not None and not _BYTES < vocabulary <= _TOKENS:
        raise InputError(
            f"data.vocabulary={vocabulary}: expected {_BYTES + 1} to {_TOKENS}, or null for all of GPT-2's tokens"
        )
    path = find_file("encoder.json", "gpt2_bpe", root)
    if path is None:
        raise InputError(
            f"data.tokenizer=gpt2: no encoder.json in {places(root)}; fetch it by `curl --create-dirs -o "
            f"{cache_folder() / 'encoder.json'} {ENCODER_URL}`, or take data.tokenizer=characters"
        )
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != ENCODER_SHA256:
        raise InputError(
            f"{path}: not GPT-2's encoder.json: sha256 {found}, expected {ENCODER_SHA256}; fetch it again by "
            f"`curl -o {path} {ENCODER_URL}`"
        )
    try:
        from tiktoken import Encoding
    except ImportError:
        raise InputError(
            "data.tokenizer=gpt2 needs tiktoken: install it by `pip install tiktoken`, or take "
            "data.tokenizer=characters"
        ) from None
    byte = _bytes_by_symbol()
    ranks = {bytes(byte[symbol] for symbol in text): rank for text, rank in json.loads(data).items()}
    del ranks[END_OF_TEXT.encode()]
    end = (vocabulary or _TOKENS) - 1
    ranks = {text: rank for text, rank in ranks.items() if rank < end}
    special = {END_OF_TEXT: end}
    encoding = Encoding("gpt2", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    names = (*(text.decode("utf-8", "surrogateescape") for text in sorted(ranks, key=ranks.__getitem__)), END_OF_TEXT)
    name = "gpt2" if vocabulary is None else f"gpt2-{vocabulary}"
    return Tokenizer(name, names, lambda text: encoding.encode_to_numpy(text, allowed_special="all"))


def _bytes_by_symbol() -> dict[str, int]:
    """Printable character in GPT-2's files ↦ the byte it stands for: itself, or one numbered from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# Where the files are ------------------------------------------------------------------------------------------------


def find_file(name: str, subfolder: str, root: str | None) -> Path | None:
    """The file in the first of these folders or its ``subfolder``: ``root``, ``OPPOSING_SIGNALS_DATA``, the cache."""
    for folder in _folders(root):
        for place in (folder, folder / subfolder):
            if (place / name).is_file():
                return place / name
    return None


def places(root: str | None) -> str:
    """The folders in which `find_file` looks, for a message."""
    return " or ".join(str(folder) for folder in _folders(root))


def _folders(root: str | None) -> list[Path]:
    named = [folder for folder in (root, os.environ.get(ENVIRONMENT_VARIABLE)) if folder]
    return [*(Path(folder).expanduser() for folder in named), cache_folder()]
