"""Cards of samples from pools that are no single file, and of system turns."""

import datasets
import pool_forms as pools

from vlmsel.data.formats import pool_digest
from vlmsel.data.images import load_image
from vlmsel.reporting.cards import Cards, Texts, Thumbnails


def test_a_pool_that_is_a_folder_is_read_unless_it_changed(tmp_path):
    turns = [{"role": name, "content": f"from {name}"} for name in ("system", "user", "assistant")]
    pool = tmp_path / "pool"
    datasets.Dataset.from_list([{"messages": turns}]).save_to_disk(str(pool))
    texts = Texts.read(pool, [0], pool_digest(pool))
    assert texts.problem == "" and list(texts.samples) == [0]
    assert "changed since it was scored" in Texts.read(pool, [0], "another").problem
    card = Cards(texts, Thumbnails(None, lambda folder, name: None)).card(0, "it", [], {})
    assert card.turns == [("System", "from system"), ("Human", "from user"), ("Assistant", "from assistant")]


def test_pictures_inside_a_pool_are_shown_without_an_image_folder(tmp_path):
    pool = pools.FORMS["parquet of bytes"](tmp_path)
    cards = Cards(Texts.read(pool, range(4)), Thumbnails(None, load_image))
    shown = [cards.card(uid, "it", [], {}) for uid in range(4)]
    assert [len(card.pictures) for card in shown] == [1, 0, 2, 1] and not any(card.missing for card in shown)
