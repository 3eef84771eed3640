"""Cards by name: what their makers say of them, and what share of it was measured here."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Card:
    """What a plan reckons with.

    Attributes:
        name: what it is called.
        bfloat16, float32: dense products with sums in float32, in operations per second; no sparsity.
        memory: bytes.
        bandwidth: of its memory, in bytes per second.
        source: where the numbers are from.
    """

    name: str
    bfloat16: float
    float32: float
    memory: int
    bandwidth: float
    source: str

    def rate(self, dtype: str) -> float:
        """Return operations per second with weights of a dtype; packed ones are unpacked to bfloat16."""
        return self.float32 if dtype == "float32" else self.bfloat16


CARDS = {
    card.name: card
    for card in (
        Card("H200", 989e12, 67e12, 141 * GB, 4.8e12, "NVIDIA H200 SXM data sheet"),
        Card("H100", 989e12, 67e12, 80 * GB, 3.35e12, "NVIDIA H100 SXM data sheet"),
        Card("A100-80G", 312e12, 19.5e12, 80 * GB, 2.039e12, "NVIDIA A100 80GB SXM data sheet"),
        Card("RTX-4090", 165.2e12, 82.6e12, 24 * GB, 1.008e12, "NVIDIA Ada architecture white paper"),
        Card("CPU", 1e12, 1e12, 64 * GB, 5e10, "assumed: 16 cores with AVX2, 64 GB; measure yours with `vlmsel demo`"),
    )
}
UTILISATION = 0.33
"""Share of the data sheet's rate that a forward and backward of llava-7b reached on an H100 (README.md): 0.44 of 744
TFLOP/s, which that card's own bfloat16 products reached, over the sheet's 989."""


def find_card(name: str) -> Card:
    """Return the card of a name, however it is spelled.

    Raises:
        ValueError: there is none.

    >>> find_card("rtx 4090").name
    'RTX-4090'
    """
    plain = {_plain(known): card for known, card in CARDS.items()} | {"a100": CARDS["A100-80G"]}
    if _plain(name) not in plain:
        raise ValueError(f"no card {name!r}; there are {', '.join(CARDS)}")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
