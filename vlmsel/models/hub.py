"""Models on the Hugging Face hub: fetched into the cache's folder, or one line within seconds where that cannot be.

Without network the hub's client tries for most of a minute, file by file; so that the hub's machine is asked for a
connection first, and what is in the cache is taken where it does not answer.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from vlmsel.data.hub import HUB_NAME, hub_answers
from vlmsel.models.language import quiet_transformers

FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt"]


def could_be_on_hub(source: str) -> bool:
    """Tell whether a source has the form `owner/name` and is no path that exists.

    >>> could_be_on_hub("meta-llama/Llama-2-7b-hf"), could_be_on_hub("/runs/tune"), could_be_on_hub("runs/a/model")
    (True, False, False)
    """
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def local(source: str) -> str:
    """Return a source that could be on the hub as the folder that it was fetched into, any other as it is.

    Raises:
        FileNotFoundError: as for `fetched`.
    """
    return fetched(source) if could_be_on_hub(source) else source


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
