"""What any test may ask for, and what is done for all."""

import gc
import os
from contextlib import contextmanager

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread per process, before torch counts the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import shape_checks
from jaxtyping import config as shape_settings

shape_checks.install()  # before the package is imported


def pytest_configure(config):
    """Import what all tests need, where tests run: not in the process that deals them to workers."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        import peft  # noqa: F401
        import transformers

        assert transformers.Trainer  # imports what it needs
        gc.collect()
        gc.freeze()  # the libraries' million objects need not be looked through again at every collection


def pytest_unconfigure():
    """Let the last collection take all objects, or libraries tell of leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def shapes():
    """Check shapes anew in every test."""
    shape_checks.begin_test()


@pytest.fixture(autouse=True, scope="session")
def no_power_cut():
    """Let the system write files when it likes: no test cuts the power, and some write hundreds of small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_collections():
    """Look through young objects alone where memory is freed between models: here they are tiny, and many."""
    with pytest.MonkeyPatch.context() as patch:
        collect = gc.collect
        patch.setattr(gc, "collect", lambda generation=0: collect(0))
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Run as users do, without the checks of shapes and types around functions, to see the package's own refusals."""
    monkeypatch.setattr(shape_settings, "jaxtyping_disable", True)


@pytest.fixture
def small_disk():
    """A context in which no file grows beyond so many bytes, which stands in for a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
