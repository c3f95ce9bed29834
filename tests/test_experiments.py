"""Short and misspelt names of experiments."""

import re

import pytest

from opposing_signals.errors import InputError
from opposing_signals.experiments import did_you_mean, experiments, families, named


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fig1", "fig01_group_losses"),
        ("fig01", "fig01_group_losses"),
        ("fig10", "fig10_red_block"),
        ("Fig5", "fig05_sky_block"),
        ("fig6a", "fig06a_sgd_groups"),
        ("fig06a", "fig06a_sgd_groups"),
        ("fig1_group", "fig01_group_losses"),
        ("theorem31", "theorem31"),
        ("theorem-map", "theorem_map"),
        ("talk_other", "talk_other_losses"),
        ("sam", "sam_vs_1sam"),
    ],
)
def test_a_number_or_a_beginning_names_an_experiment(given, meant):
    assert named(given) == meant


def test_every_name_and_every_figure_number_is_found():
    for name in experiments():
        assert named(name) == name
        if figure := re.match(r"fig0*(\d+[a-z]?)_", name):
            assert named(f"fig{figure[1]}") == name


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("fig06", ["fig06a_sgd_groups or fig06b_projection", "say which"]),
        ("theorem3", ["theorem31 or theorem32"]),
        ("fig", ["fig01_group_losses", "others"]),
        ("", ["unknown", "opposing-signals list"]),
        ("fig99", ["unknown", "opposing-signals list"]),
        ("group_losses", ["did you mean", "fig01_group_losses"]),
        ("theorm31", ["did you mean theorem31"]),
        ("fgi1", ["did you mean fig1"]),
    ],
)
def test_what_is_ambiguous_or_unknown_is_refused_in_one_line(given, parts):
    with pytest.raises(InputError) as refused:
        named(given)
    for part in parts:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_looks_like_nothing_gets_no_proposal():
    assert did_you_mean("zzz", ["sgd", "adam"]) == ""
    assert did_you_mean("sdg", ["sgd", "adam"]) == "did you mean sgd? "


def test_every_experiment_has_one_family():
    members = [name for names in families().values() for name in names]
    assert sorted(members) == sorted(experiments())
    assert all(families().values())
