import pytest

from opposing_signals.data import openwebtext, planted
from opposing_signals.data.token_patterns import LEAST_CONTEXT, PAIRS, PATTERNS, pattern_points
from opposing_signals.errors import InputError

FRONT = "x, " * LEAST_CONTEXT
TEXT = (
    f'{FRONT} he said "so." She said “no.” They said "why". Then “who”. It’s '
    'List:\none: the two: that a: theory "yes," it is.\n'
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(folder, content: str) -> str:
    path = folder / "own.txt"
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


EXPECTED = {
    "quote_after_period": ['so."', "no.”"],
    "quote_before_period": ['why"', "who”"],
    "newline_after_colon": ["List:\n"],
    "the_after_colon": ["one: "],
    "closing_quote": [],  # here each mark is one token
    "apostrophe": [],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_characters_are_found_by_their_text(tmp_path, pattern):
    data = openwebtext("characters", block=len(TEXT) - 1, path=written(tmp_path, TEXT))
    points = pattern_points(data, pattern)
    assert [TEXT[: point + 2][-len(end) :] for point, end in zip(points, EXPECTED[pattern], strict=True)] == EXPECTED[
        pattern
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_byte_pairs_are_found_by_their_last_byte_unless_they_hold_what_is_beside_it(tmp_path, real_data, pattern):
    pytest.importorskip("tiktoken")
    path = written(tmp_path, TEXT)
    whole = openwebtext(block=8, path=path, root=str(real_data))
    tokens = [int(whole.inputs[0, 0]), *whole.targets.flatten().tolist()]
    data = openwebtext(block=len(tokens) - 1, path=path, root=str(real_data))
    names = [name.encode("utf-8", "surrogateescape") for name in data.class_names]
    targets = [names[data.targets.flatten()[point]] for point in pattern_points(data, pattern)]
    assert (
        targets
        == {
            "quote_after_period": [b"\x9d"],
            "quote_before_period": [b"\x9d"],
            "newline_after_colon": [b"\n"],
            "the_after_colon": [b" the"],
            "closing_quote": [b"\x9d", b"\x9d"],
            "apostrophe": [b"\x99"],
        }[pattern]
    )


def test_a_target_without_context_in_its_sequence_is_no_match(tmp_path):
    text = "a:\n" + FRONT + ":\n" + "z" * 20
    data = openwebtext("characters", block=len(text) - 1, path=written(tmp_path, text))
    assert pattern_points(data, "newline_after_colon").tolist() == [len("a:\n" + FRONT)]
    short = openwebtext("characters", block=LEAST_CONTEXT, path=written(tmp_path, text))
    assert not len(pattern_points(short, "newline_after_colon"))


def test_pieces_do_not_matter(tmp_path, monkeypatch):
    data = openwebtext("characters", block=40, path=written(tmp_path, 30 * TEXT))
    whole = {pattern: pattern_points(data, pattern).tolist() for pattern in PATTERNS}
    assert {pattern for pattern in PATTERNS if whole[pattern]} == {name for name in EXPECTED if EXPECTED[name]}
    monkeypatch.setattr("opposing_signals.data.token_patterns._PIECE", 1000)
    for pattern, points in whole.items():
        # Matches across the border of two pieces may be missed; nothing else changes.
        found = set(pattern_points(data, pattern).tolist())
        assert found <= set(points)
        assert len(points) - len(found) <= 30 * len(TEXT) // 1000


def test_pairs_are_of_patterns():
    assert {pattern for pair in PAIRS.values() for pattern in pair} == set(PATTERNS)


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no text: expected sequences of tokens"):
        pattern_points(planted(20), "the_after_colon")
    data = openwebtext("characters", block=40, path=written(tmp_path, TEXT))
    with pytest.raises(InputError, match="pattern dash: expected one of quote_after_period"):
        pattern_points(data, "dash")
