"""What any test may ask for, and what is done for all."""

from contextlib import contextmanager

import pytest
import shape_checks
from jaxtyping import config

shape_checks.install()  # before the package is imported


@pytest.fixture(autouse=True)
def shapes():
    """Check shapes anew in every test."""
    shape_checks.begin_test()


@pytest.fixture
def unchecked(monkeypatch):
    """Run as users do, without the checks of shapes and types around functions, to see the package's own refusals."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


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
