"""Whether the hub can be reached: where it cannot, `datasets` looks into its cache alone instead of trying for long."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

PATIENCE = 3.0  # seconds
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")


def reachable() -> bool:
    """Tell whether the hub answers, or a proxy stands between that would know."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return True
    address = urlparse(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), PATIENCE).close()
    except OSError:
        return False
    return True


@contextmanager
def cache_alone(alone: bool) -> Iterator[None]:
    """Keep `datasets` from asking the hub."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if alone:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
