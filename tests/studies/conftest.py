import pytest

from opposing_signals.studies import style


@pytest.fixture(autouse=True)
def look():
    """Figures are drawn as an experiment draws them."""
    with style.look():
        yield
