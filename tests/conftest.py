"""What any test may ask for, and what is done for all."""

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
