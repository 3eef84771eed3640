"""What any test may ask for."""

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked(monkeypatch):
    """Run as users do, without the checks of shapes and types around functions, to see the package's own refusals."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
