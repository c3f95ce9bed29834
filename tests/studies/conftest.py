import pytest

from opposing_signals.studies import style


@pytest.fixture(autouse=True)
def look():
    """Figures use the style of experiments."""
    with style.look():
        yield
