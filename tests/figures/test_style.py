import matplotlib.pyplot as plt
import pytest

from opposing_signals.figures import style


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def title(width, text):
    return style.figure(width, 3, text).get_suptitle()


def test_a_title_that_fits_stays_as_it_is():
    assert title(13, "A block of sky\nResNet-18") == "A block of sky\nResNet-18"


def test_a_title_that_does_not_fit_is_broken_into_lines_of_about_the_same_length():
    lines = title(6.0, "ResNet-32 of width 8, cifar10 (5000 of 50000 images), batch 128").splitlines()
    assert len(lines) == 2
    assert abs(len(lines[0]) - len(lines[1])) < 12


@pytest.mark.parametrize("text", ["a = 12345678 b", "./probes/my_own_picture_of_grass.png seen", "word"])
def test_no_word_is_cut(text):
    assert title(2, text).replace("\u00a0", " ").split() == text.split()


@pytest.mark.parametrize("width", [3, 4, 5, 6, 7, 8])
def test_an_equation_stays_on_one_line(width):
    text = "A block of white passed through a network: cifar10 (500 images), η = 0.1"
    lines = title(width, text).replace("\u00a0", " ").splitlines()
    assert lines[-1].endswith("η = 0.1")
    assert " ".join(lines) == text
