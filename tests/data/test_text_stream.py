import sys
from types import SimpleNamespace

import pytest

from opposing_signals.data import text_stream
from opposing_signals.data.tokenizers import decode
from opposing_signals.errors import InputError

DOCUMENTS = [{"text": f"Document {number}: it is “{number}”.\n"} for number in range(6)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one data set; counts its requests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def load_dataset(name, split, streaming):
        assert (split, streaming) == ("train", True)
        asked.append(name)
        if name != "someone/texts":
            raise FileNotFoundError(f"no data set\n{name}")
        return iter(DOCUMENTS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_documents_are_streamed_once(hub):
    texts = [text_stream("someone/texts", 4, tokenizer="characters", block=20) for _ in range(2)]
    whole = "".join(document["text"] + "<|endoftext|>" for document in DOCUMENTS[:4])
    assert decode(texts[0].inputs.flatten().tolist(), texts[0].class_names) == whole[: texts[0].inputs.numel()]
    assert texts[0].checksum == texts[1].checksum
    assert hub == ["someone/texts"]
    assert len(text_stream("someone/texts", 5, tokenizer="characters", block=20)) > len(texts[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hub": "someone/else"}, "data.hub=someone/else cannot be read .FileNotFoundError: no data set someone/else"),
        ({"column": "body"}, "data.column=body: someone/texts has text"),
    ],
)
def test_what_cannot_be_streamed_is_refused(hub, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        text_stream(**{"hub": "someone/texts", "documents": 3, "tokenizer": "characters", "block": 20, **arguments})
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_a_missing_package_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets: install it by `pip install datasets`"):
        text_stream("someone/texts", 3)
