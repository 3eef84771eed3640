"""Models on the Hugging Face hub: fetched into the cache's folder, or one line within seconds where that cannot be.

Without network the hub's client tries for most of a minute, file by file; so that the hub's machine is asked for a
connection first, and what is in the cache is taken where it does not answer.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download

from vlmsel.models.language import quiet_transformers

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt"]
WAIT = 3.0  # seconds


def could_be_on_hub(source: str) -> bool:
    """Tell whether a source has the form `owner/name` and is no path that exists.

    >>> could_be_on_hub("meta-llama/Llama-2-7b-hf"), could_be_on_hub("/runs/tune"), could_be_on_hub("runs/a/model")
    (True, False, False)
    """
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def fetched(source: str) -> str:
    """Return the folder of a hub's model, fetched where it is not there yet.

    Raises:
        FileNotFoundError: it is not here, and the hub has no such model or does not answer.
    """
    there = hub_answers()
    try:
        with quiet_transformers():
            return snapshot_download(source, allow_patterns=FILES, ignore_patterns=["*/*"], local_files_only=not there)
    except (OSError, ValueError) as problem:
        told = " ".join(str(problem).split())[:200].rstrip(".")
        reason = told if there else "the hub does not answer, and the model is not in the cache"
        raise FileNotFoundError(
            f"{source}: no such folder, and no model of this name can be loaded from the hub ({reason}); mend the "
            "path or the name, or fetch the model into a folder first"
        ) from problem


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
