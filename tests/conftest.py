import os
from pathlib import Path

import pytest
from hypothesis import settings

import opposing_signals  # noqa: F401  # lets a test file alone import lightning beside a CPU build of torch

# The same examples in every run, so that what fails is what has changed.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that use it are skipped where there is none."""
    folder = Path(os.environ.get("OPPOSING_SIGNALS_DATA") or Path(__file__).parents[2] / "shared" / "data").absolute()
    if not folder.is_dir():
        pytest.skip(f"needs the real data: there is no {folder}; set OPPOSING_SIGNALS_DATA to their folder")
    return folder
