"""The Hugging Face hub: which names could be on it, and whether it answers; its clients try for most of a minute."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WAIT = 3.0  # seconds


def hub_answers() -> bool:
    """Tell whether the hub's machine takes a connection within seconds; true behind a proxy, which is not asked."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():
        return True
    place = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    asked: list[bool] = []

    def ask() -> None:
        with suppress(OSError), socket.create_connection(place, timeout=WAIT):
            asked.append(True)

    thread = Thread(target=ask, daemon=True)  # names are looked up without a limit of time
    thread.start()
    thread.join(WAIT)
    return bool(asked)


@contextmanager
def cache_alone(alone: bool) -> Iterator[None]:
    """Keep `datasets` from asking the hub."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if alone:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
