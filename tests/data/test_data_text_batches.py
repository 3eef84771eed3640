"""Encoded texts: pairs, cuts, padding on the right, and halves that are padded to their own longest sample."""

import torch
from tiny_text import sentences, word_tokenizer

from vlmsel.data.text_batches import TextCollator, encode_texts

TEXTS = [(text,) for text, _ in sentences(6)]


def encoded(texts=TEXTS, limit=20):
    return [encode_texts(word_tokenizer(), 10 + row, one, 0, limit) for row, one in enumerate(texts)]


def lengths(items):
    return [len(item.input_ids) for item in items]


def test_ids_are_the_tokenizer_s_with_a_mask_of_their_length():
    data = encoded()
    batch = TextCollator(0)(data)
    assert batch.uids.tolist() == list(range(10, 16)) and not any(item.cut for item in data)
    for row, (text,) in enumerate(TEXTS):
        ids = word_tokenizer()(text)["input_ids"]
        assert batch.input_ids[row].tolist() == ids + [0] * (batch.input_ids.shape[1] - len(ids))
        assert batch.attention_mask[row].sum() == len(ids) == lengths(data)[row]


def test_long_texts_are_cut_and_counted_with_their_last_separator():
    data = encoded(limit=5)
    assert [item.cut for item in data] == [len(text.split()) > 3 for (text,) in TEXTS]
    assert any(item.cut for item in data) and max(lengths(data)) == 5
    assert all(item.input_ids[-1] == 3 for item in data)


def test_pairs_have_token_types_and_the_longer_text_is_cut():
    data = encoded([("good0 good1 good2 good3 good4", "bad0")], limit=7)
    assert word_tokenizer().decode(data[0].input_ids) == "[CLS] good0 good1 good2 [SEP] bad0 [SEP]"
    assert data[0].token_types == [0, 0, 0, 0, 0, 1, 1]


def test_more_than_two_texts_are_joined_from_the_second_on():
    data = encoded([("good0", "bad0", "odd0")])
    assert word_tokenizer().decode(data[0].input_ids) == "[CLS] good0 [SEP] bad0 odd0 [SEP]"


def test_halves_are_what_collating_each_half_gives():
    data, collate = encoded(), TextCollator(0)
    for half, items in zip(collate(data).halves(), (data[:3], data[3:]), strict=True):
        expected = collate(items)
        for name in ("input_ids", "attention_mask", "token_type_ids", "labels", "uids"):
            assert torch.equal(getattr(half, name), getattr(expected, name))


def test_parts_of_like_length_hold_every_sample_once_with_less_padding():
    data, collate = encoded(), TextCollator(0)
    batch = collate(data)
    order, parts = batch.by_length(3)
    assert torch.equal(batch.uids[order], torch.cat([part.uids for part in parts]))
    by_uid = {item.uid: item for item in data}
    assert sorted(uid for part in parts for uid in part.uids.tolist()) == [item.uid for item in data]
    for part in parts:
        assert torch.equal(part.input_ids, collate([by_uid[uid] for uid in part.uids.tolist()]).input_ids)
    assert sum(part.input_ids.numel() for part in parts) < batch.input_ids.numel()
