import gc
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import omegaconf
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hypothesis import settings

import opposing_signals  # noqa: F401  # so that a test file run alone can import lightning with a CPU build of torch
from opposing_signals.configuration import configuration_folder
from opposing_signals.studies import style

# The same examples in every run, so that a new failure is due to a change of the code.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# The processes that tests start are forked from one that has imported this, once.
multiprocessing.set_forkserver_preload(["opposing_signals.app.command", "opposing_signals.training.job"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that parallel workers finish at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    # Garbage collection among the million objects of the libraries took a tenth of the time.
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)


@pytest.fixture(scope="session", autouse=True)
def _no_power_cut_is_waited_for() -> Iterator[None]:
    """Skip fsync: written data are in the page cache, which survives the kill of a process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_configurations_are_read_once() -> Iterator[None]:
    """Hydra rereads the files, and OmegaConf reparses each reference, for every configuration that is composed.

    Each job of a sweep composes its configuration twice.
    """
    read, compose, known = ConfigRepository.load_config, ConfigLoaderImpl.load_sweep_config, {}

    def kept(make, repository, *key):
        if {source.path for source in repository.sources if source.scheme() == "file"} != {str(configuration_folder())}:
            return make()
        if key not in known:
            known[key] = make()
        return deepcopy(known[key])

    def load(repository, config_path):
        return kept(lambda: read(repository, config_path), repository, config_path)

    def of_job(loader, master_config, sweep_overrides):
        key = master_config.hydra.job.config_name, *master_config.hydra.overrides.hydra, *sweep_overrides
        return kept(lambda: compose(loader, master_config, sweep_overrides), loader.repository, *key)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConfigRepository, "load_config", load)
        patched.setattr(ConfigLoaderImpl, "load_sweep_config", of_job)
        patched.setattr(omegaconf.base, "parse", cache(omegaconf.base.parse))
        yield


@pytest.fixture(scope="session", autouse=True)
def _pictures_have_few_pixels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(style, "DPI", 75)
        yield


@pytest.fixture(autouse=True)
def _handlers_of_one_test() -> Iterator[None]:
    """Hydra's handlers write to the streams that pytest captures for one test and closes after it."""
    loggers = (logging.getLogger(), logging.getLogger("hydra"))
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that use it are skipped if there is none."""
    folder = Path(os.environ.get("OPPOSING_SIGNALS_DATA") or Path(__file__).parents[2] / "shared" / "data").absolute()
    if not folder.is_dir():
        pytest.skip(f"needs the real data: there is no {folder}; set OPPOSING_SIGNALS_DATA to their folder")
    return folder
