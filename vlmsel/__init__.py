"""vlmsel: which k % of your instruction data to fine-tune a vision-language model on.

Public names are loaded on first use, so that `import vlmsel` and `vlmsel --help` need no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "HyperINF": "vlmsel.scorers",
    "DataInf": "vlmsel.scorers",
    "LiSSA": "vlmsel.scorers",
    "TracIn": "vlmsel.scorers",
    "Adafactor": "vlmsel.scorers",
    "Exact": "vlmsel.scorers",
    "KFAC": "vlmsel.scorers",
    "EKFAC": "vlmsel.scorers",
    "TwoSided": "vlmsel.scorers",
    "Hidden": "vlmsel.scorers",
    "Embedding": "vlmsel.scorers",
    "BM25": "vlmsel.scorers",
    "Random": "vlmsel.scorers",
    "score_gradients": "vlmsel.scoring.arrays",
    "Factor": "vlmsel.gradients",
    "capture": "vlmsel.gradients",
    "per_sample_gradients": "vlmsel.gradients",
    "select_blocks": "vlmsel.gradients",
    "VLM": "vlmsel.models.vlm",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlmsel' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
