import json
import re
import sys

import numpy as np
import pytest
import torch

from opposing_signals.data import openwebtext, text, text_demo
from opposing_signals.data.tokenizers import characters, decode, gpt2
from opposing_signals.errors import InputError

MIXED = "It’s “quiet.”\r\n\r\n\n  Über  \n\n\n日本 don't 1234 🙂\n\tx<|endoftext|>\nA: the\u00a0\n\n end \n \n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPPOSING_SIGNALS_DATA", raising=False)
    return tmp_path / "cache" / "opposing-signals"


@pytest.fixture
def bpe(real_data):
    pytest.importorskip("tiktoken")
    return gpt2(str(real_data))


def written(folder, content: str | bytes) -> str:
    path = folder / "own.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# Tokenizers ---------------------------------------------------------------------------------------------------------


def test_gpt2_gives_the_published_numbers(bpe):
    # `GPT2Tokenizer` of OpenAI's release and of every copy since: "Hello world" is 15496 995
    assert bpe.encode("Hello world").tolist() == [15496, 995]
    assert bpe.encode("a<|endoftext|>").tolist() == [64, 50256]
    assert len(bpe.names) == 50257
    pairs = {bpe.names[token] for token in (526, 1911)}
    assert pairs == {'."', '".'}


def test_gpt2_is_that_of_tiktoken(bpe, real_data, monkeypatch):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data / "gpt2_bpe" / "tiktoken_cache"))
    theirs = tiktoken.get_encoding("gpt2")
    sample = (real_data / "text" / "openwebtext_sample.txt").read_text(encoding="utf-8")[:200_000]
    for content in (MIXED, sample):
        assert bpe.encode(content).tolist() == theirs.encode(content, allowed_special="all")
    for token in (0, 255, 256, 50255, 50256):
        assert bpe.names[token].encode("utf-8", "surrogateescape") == theirs.decode_single_token_bytes(token)


@pytest.mark.parametrize("vocabulary", [257, 1000, 4096])
def test_the_first_merges_are_a_smaller_vocabulary(bpe, real_data, vocabulary):
    small = gpt2(str(real_data), vocabulary)
    assert len(small.names) == vocabulary
    assert small.names[:-1] == bpe.names[: vocabulary - 1]
    tokens = small.encode(MIXED)
    assert decode(tokens, small.names) == MIXED
    assert (tokens == vocabulary - 1).sum() == (bpe.encode(MIXED) == 50256).sum() == 1
    assert gpt2(str(real_data), 50257).encode(MIXED).tolist() == bpe.encode(MIXED).tolist()
    # Byte-pair encoding applies the merges in order: with fewer merges the pieces are cut further, never differently.
    cuts = [
        {*np.cumsum([len(kind.names[token].encode("utf-8", "surrogateescape")) for token in kind.encode(MIXED)])}
        for kind in (bpe, small)
    ]
    assert cuts[0] < cuts[1]


def test_vocabularies_of_one_text_are_kept_apart(bpe, tmp_path, real_data, cache):
    path = written(tmp_path, 3 * MIXED)
    small, whole = (openwebtext(vocabulary=n, block=8, path=path, root=str(real_data)) for n in (300, None))
    assert small.output_width == 300
    assert small.inputs.max() == 299
    assert "gpt2-300" in small.name
    assert small.checksum != whole.checksum
    assert len(list((cache / "tokens").glob("*.npy"))) == 2


def test_nothing_is_lost_by_the_names_of_tokens(bpe):
    for tokenizer in (bpe, characters([MIXED])):
        assert decode(tokenizer.encode(MIXED), tokenizer.names) == MIXED
    first = bpe.encode("“")[:1]
    assert decode(first, bpe.names) == "\ufffd"
    assert json.loads(json.dumps(bpe.names)) == list(bpe.names)


def test_characters_are_numbered_by_code_point():
    tokenizer = characters(["ba", "é🙂a"])
    assert tokenizer.names == ("a", "b", "é", "🙂")
    assert tokenizer.encode("🙂ab").tolist() == [3, 0, 1]


# Data sets ----------------------------------------------------------------------------------------------------------


def test_targets_are_the_tokens_that_follow(tmp_path):
    content = "abcabdé\nxyz" * 5  # 55 characters: 6 sequences of 9, and the character after them
    data = openwebtext("characters", block=9, path=written(tmp_path, content))
    assert data.inputs.shape == data.targets.shape == (6, 9)
    assert data.inputs.dtype == data.targets.dtype == torch.int64
    assert torch.equal(data.inputs.flatten()[1:], data.targets.flatten()[:-1])
    assert decode(data.inputs.flatten().tolist(), data.class_names) == content[:54]
    assert decode(data.targets.flatten().tolist(), data.class_names) == content[1:]
    assert data.is_classification
    assert data.output_width == len(set(content))
    assert data.name == "own.txt (6 of 6 sequences of 9 tokens, characters)"
    assert data.test_inputs is None


def test_the_first_sequences_can_be_taken(tmp_path):
    path = written(tmp_path, "abcdefghij" * 10)
    whole, part = (openwebtext("characters", block=8, sequences=n, path=path) for n in (None, 3))
    assert torch.equal(part.inputs, whole.inputs[:3])
    assert part.name == "own.txt (3 of 12 sequences of 8 tokens, characters)"
    assert part.checksum != whole.checksum
    assert part.checksum == openwebtext("characters", block=8, sequences=3, path=path).checksum


def test_the_sample_is_found_in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "data" / "text" / "openwebtext_sample.txt").write_text("some text " * 9)
    by_root = openwebtext("characters", block=16, root=str(tmp_path / "data"))
    monkeypatch.setenv("OPPOSING_SIGNALS_DATA", str(tmp_path / "data"))
    assert openwebtext("characters", block=16).checksum == by_root.checksum


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_tokens_do_not_depend_on_how_the_file_is_read(bpe, piece, tmp_path, real_data, monkeypatch):
    monkeypatch.setattr(text, "_PIECE", piece)
    content = 3 * MIXED
    data = openwebtext(block=1, path=written(tmp_path, content), root=str(real_data))
    tokens = bpe.encode(content)
    assert data.inputs.flatten().tolist() == tokens[:-1].tolist()
    assert data.targets.flatten().tolist() == tokens[1:].tolist()


def test_the_real_sample_has_its_known_number_of_tokens(bpe, real_data, cache):
    data = openwebtext(block=1024, sequences=2, root=str(real_data))
    (array,) = (cache / "tokens").glob("*.npy")
    tokens = np.load(array, mmap_mode="r")
    assert tokens.dtype == np.uint16
    assert len(tokens) == 1_655_404
    assert (tokens == 50256).sum() == 1426
    assert data.inputs.flatten().tolist() == tokens[:2048].tolist()


def test_tokens_are_made_once(tmp_path, cache, monkeypatch):
    path = written(tmp_path, "again and again " * 4)
    first = openwebtext("characters", block=8, path=path)
    (array,) = (cache / "tokens").glob("own-characters-*.npy")
    assert isinstance(np.load(array, mmap_mode="r"), np.memmap)

    def never(*_):
        raise AssertionError("tokenized twice")

    with monkeypatch.context() as patched:
        patched.setattr(text, "characters", never)
        again = openwebtext("characters", block=8, path=path)
    assert again.checksum == first.checksum
    assert again.class_names == first.class_names
    written(tmp_path, "another text " * 4)  # of the same name
    assert openwebtext("characters", block=8, path=path).checksum != first.checksum
    assert len(list((cache / "tokens").glob("*.npy"))) == 2


def test_an_interrupted_tokenization_is_begun_again(tmp_path, cache, monkeypatch):
    path = written(tmp_path, "abc " * 20)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(text.shutil, "copyfileobj", killed)
        with pytest.raises(KeyboardInterrupt):
            openwebtext("characters", block=8, path=path)
    assert not list((cache / "tokens").glob("*.npy"))
    assert len(openwebtext("characters", block=8, path=path)) == 9


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", {}, "own.txt: the file is empty; expected UTF-8 text"),
        ("abc", {"block": 3}, "data.block=3: own.txt has 3 tokens, .* expected at most 2"),
        ("abcdefg", {"block": 2, "sequences": 4}, "data.sequences=4: own.txt has 3 sequences of 2 tokens"),
        ("abcdefg", {"block": 2, "sequences": 0}, "data.sequences=0: .* expected 1 to 3"),
        ("abc", {"vocabulary": 300}, "data.vocabulary=300: expected null, characters are as many"),
        ("abc", {"tokenizer": "gpt2", "vocabulary": 256}, "data.vocabulary=256: expected 257 to 50257, or null"),
        ("abc", {"tokenizer": "gpt2", "vocabulary": 50258}, "data.vocabulary=50258: expected 257 to 50257"),
        ("\0" * 99, {"block": 3}, "own.txt: one character alone, over and over; expected a text in which"),
        ("abc", {"path": "/dev/zero"}, "data.path=/dev/zero: no regular file; expected a UTF-8 text file"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path, content, arguments, message):
    with pytest.raises(InputError, match=message):
        openwebtext(**{"tokenizer": "characters", "path": written(tmp_path, content), **arguments})


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64])
@pytest.mark.parametrize(
    ("content", "byte", "position"),
    [(b"abc\xffdef", "0xff", 3), ("a\u20ac".encode() + b"\x80x", "0x80", 4), ("abcd\u20ac".encode()[:-1], "0xe2", 4)],
)
def test_bytes_that_are_not_utf8_are_placed(tmp_path, monkeypatch, content, byte, position, piece):
    monkeypatch.setattr(text, "_PIECE", piece)
    with pytest.raises(InputError, match=f"own.txt: not UTF-8: byte {byte} at position {position};"):
        openwebtext("characters", block=1, path=written(tmp_path, content))


def test_missing_files_are_named(tmp_path, cache, monkeypatch):
    with pytest.raises(InputError, match=r"data.path=.*none.txt: cannot be read \(No such file"):
        openwebtext("characters", path=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match=rf"no openwebtext_sample.txt in {re.escape(str(tmp_path))} or .*data.path="):
        openwebtext("characters", root=str(tmp_path))
    own = written(tmp_path, "abc")
    command = f"curl --create-dirs -o {cache / 'encoder.json'} https://openaipublic.blob.core.windows.net/gpt-2/"
    with pytest.raises(InputError, match=f"no encoder.json in .*{re.escape(command)}"):
        openwebtext(path=own, root=str(tmp_path))
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match=r"encoder.json: not GPT-2's encoder.json: sha256 44136fa3"):
        openwebtext(path=own, root=str(tmp_path))


def test_a_missing_tiktoken_is_named(real_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(InputError, match=r"needs tiktoken: install it by `pip install tiktoken`"):
        gpt2(str(real_data))


def test_tokens_that_do_not_fit_their_vocabulary_are_refused(tmp_path, cache):
    path = written(tmp_path, "abc " * 20)
    openwebtext("characters", block=8, path=path)
    (array,) = (cache / "tokens").glob("*.npy")
    whole = array.read_bytes()
    np.save(array, np.array([0, 1, 4, 2], dtype=np.uint16))
    with pytest.raises(InputError, match="token 4 is outside the vocabulary of 4; delete"):
        openwebtext("characters", block=2, path=path)
    array.write_bytes(whole[:-2])
    with pytest.raises(InputError, match=r"unreadable tokens .* delete"):
        openwebtext("characters", block=2, path=path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache):
    path = written(tmp_path, "abc " * 20)
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be kept in .* XDG_CACHE_HOME"):
        openwebtext("characters", block=8, path=path)


# Drawn text ---------------------------------------------------------------------------------------------------------


def demo_text(data) -> str:
    return decode(data.inputs.flatten().tolist(), data.class_names)


def test_drawn_text_holds_the_papers_pairs():
    content = demo_text(text_demo(period_inside=0.7, newline_after_colon=0.4))
    inside, outside = len(re.findall(r'[a-z]\."', content)), len(re.findall(r'[a-z]"\.', content))
    line, the = content.count(":\n- "), content.count(": the ")
    assert inside + outside == pytest.approx(4000 / 3, abs=130)
    assert inside / (inside + outside) == pytest.approx(0.7, abs=0.05)
    assert line + the == pytest.approx(4000 / 3, abs=130)
    assert line / (line + the) == pytest.approx(0.4, abs=0.055)
    assert content.count(":") <= line + the + 1  # the last one may be cut off


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_extreme_shares_are_exact(share):
    content = demo_text(text_demo(300, period_inside=share, newline_after_colon=share))
    assert ('".' in content, '."' in content) == (share == 0, share == 1)
    assert (": the" in content, ":\n" in content) == (share == 0, share == 1)


def test_the_drawing_depends_on_its_arguments_only():
    checksums = [text_demo(200, seed=seed).checksum for seed in (0, 0, 1)]
    assert checksums[0] == checksums[1] != checksums[2]
    assert text_demo(200, block=32).checksum != checksums[0]


def test_text_is_drawn_the_same_on_every_machine():
    data = text_demo(200)
    assert demo_text(data).startswith('Frank forgot the bright letter. Ben called the ladder "green." Emma')
    assert data.checksum == "88267535d59e1af01f3ba598af764392211713d76fbbd2e98cacab8436ac4f73"


def test_a_drawn_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(InputError, match=r"data.block=500: text_demo, seed 0 has .* tokens"):
        text_demo(sentences=1, block=500)
