"""Batches put nothing where it does not belong; orders hold every sample once and follow the published rule."""

import pickle

import pytest
import torch

from vlmsel.data import batches as batching
from vlmsel.data.batches import Collator, Item, even_chunks, length_batches, modality_length_order

CAT, DOG = torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 2.0)
ITEMS = [
    Item(7, [1, -200, 5], [-100, -100, 5], ("cat",), (CAT,)),
    Item(3, [1], [1]),
    Item(9, [-200, -200, 4, 4, 2], [-100, -100, -100, 4, 2], ("dog", "cat"), (DOG, CAT)),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rows_are_padded_on_the_right():
    batch = Collator(pad_id=2)(ITEMS)
    assert batch.input_ids.tolist() == [[1, -200, 5, 2, 2], [1, 2, 2, 2, 2], [-200, -200, 4, 4, 2]]
    assert batch.labels.tolist() == [[-100, -100, 5, -100, -100], [1, *[-100] * 4], [-100, -100, -100, 4, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.uids.tolist() == [7, 3, 9]


def test_a_shared_picture_is_held_once_and_every_use_is_a_row():
    batch = Collator(0)(ITEMS)
    torch.testing.assert_close(batch.pixel_values, torch.stack([CAT, DOG]))
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.image_samples.tolist() == [0, 2, 2]
    assert batch.row_samples["projector"] is batch.image_samples


def test_a_batch_without_images_has_no_pixels():
    batch = Collator(0)(ITEMS[1:2])
    assert batch.pixel_values is None
    assert batch.image_index.shape == batch.image_samples.shape == (0,)
    assert batch.image_index.dtype == batch.image_samples.dtype == torch.long
    assert batch.to("cpu").pixel_values is None


def test_moving_changes_no_type():
    batch = Collator(0)(ITEMS).to("cpu")
    assert batch.pixel_values.dtype == CAT.dtype
    kinds = {batch.input_ids.dtype, batch.labels.dtype, batch.attention_mask.dtype, batch.image_index.dtype}
    assert kinds == {torch.long} and batch.uids.tolist() == [7, 3, 9]
    assert Collator(0)(ITEMS).to("meta").labels.device.type == "meta"


def test_collators_and_batches_travel_to_other_processes():
    batch = pickle.loads(pickle.dumps(Collator(0)))(pickle.loads(pickle.dumps(ITEMS)))
    torch.testing.assert_close(pickle.loads(pickle.dumps(batch)).pixel_values, batch.pixel_values)


def test_collators_refuse_what_they_cannot_pad():
    with pytest.raises(ValueError, match="no samples"):
        Collator(0)([])
    with pytest.raises(ValueError, match="sample 4 names 2 images and holds 1"):
        Collator(0)([Item(4, [1], [1], ("a", "b"), (CAT,))])


# orders


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("limits", [{"batch_size": 3}, {"max_tokens": 12}, {"batch_size": 2, "max_tokens": 9}])
def test_length_batches_hold_every_position_once_within_the_limits(limits, seed):
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 20]
    batches = length_batches(lengths, **limits, generator=None if seed is None else generator(seed))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= limits.get("batch_size", 99)
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limits.get("max_tokens", 999)
    spans = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in batches)
    assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:], strict=False))


def test_length_batches_repeat_with_the_generator_and_differ_without_it():
    lengths = [5] * 40
    assert length_batches(lengths, 4, generator=generator(3)) == length_batches(lengths, 4, generator=generator(3))
    assert length_batches(lengths, 4, generator=generator(3)) != length_batches(lengths, 4, generator=generator(4))
    assert length_batches(lengths, 40) == [list(range(40))]
    assert length_batches([], 4) == []


@pytest.mark.parametrize("limits", [{}, {"batch_size": 0}, {"max_tokens": 0}])
def test_length_batches_need_a_limit(limits):
    with pytest.raises(ValueError, match="batch_size or max_tokens must be at least 1"):
        length_batches([1, 2], **limits)


def test_even_chunks_give_each_place_the_same_number():
    lengths = [100, 1, 1, 1, 1, 1]
    assert even_chunks(range(6), lengths, 2) == [[0, 4, 5], [1, 2, 3]]
    assert even_chunks([4, 0], [-9, 0, 0, 0, -1], 2) == [[4], [0]]


def naive_order(lengths, size, ranks, draw):
    """The published rule, one step at a time."""

    def grouped(chosen):
        chosen = [chosen[j] for j in torch.randperm(len(chosen), generator=draw).tolist()]
        result = []
        while chosen:
            group, chosen = chosen[: size * ranks], chosen[size * ranks :]
            group.sort(key=lambda i: -abs(lengths[i]))
            hands, sums = [[] for _ in range(ranks)], [0.0] * ranks
            for turn, i in enumerate(group):
                hand = turn % ranks if len(group) % ranks else sums.index(min(sums))
                hands[hand].append(i)
                sums[hand] += abs(lengths[i])
                if len(hands[hand]) == len(group) // ranks and len(group) % ranks == 0:
                    sums[hand] = float("inf")
            result.append([i for hand in hands for i in hand])
        return result

    pictures = grouped([i for i, length in enumerate(lengths) if length > 0])
    texts = grouped([i for i, length in enumerate(lengths) if length < 0])
    if not pictures or not texts:
        return [i for group in pictures + texts for i in group]
    groups = pictures[:-1] + texts[:-1]
    groups = [groups[j] for j in torch.randperm(len(groups), generator=draw).tolist()]
    return [i for group in groups for i in group] + sorted(pictures[-1] + texts[-1])


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (4, 4), (50, 1)])
@pytest.mark.parametrize("texts", [0.0, 0.3, 1.0])
def test_modality_order_equals_the_plain_rule(shape, texts):
    draw = generator(int(texts * 10) + shape[0])
    sizes = torch.randint(1, 40, (101,), generator=draw)
    lengths = (sizes * torch.where(torch.rand(101, generator=draw) < texts, -1, 1)).tolist()
    order = modality_length_order(lengths, *shape, generator(5))
    assert order == naive_order(lengths, *shape, generator(5))
    assert sorted(order) == list(range(101))


def test_modality_order_by_hand(monkeypatch):
    monkeypatch.setattr(batching, "_shuffled", lambda values, generator: list(values))
    lengths = [3, -2, 5, 4, -7, 1, 2, 6, -1, -4]
    assert modality_length_order(lengths, 2, 1, generator()) == [2, 0, 3, 5, 4, 1, 6, 7, 8, 9]


def test_global_batches_hold_one_modality_but_for_the_tail():
    lengths = [(-1) ** i * (i % 13 + 1) for i in range(200)]
    order = modality_length_order(lengths, 4, 2, generator(1))
    batches = [order[start : start + 8] for start in range(0, 200 - 16, 8)]
    assert all(len({lengths[i] > 0 for i in batch}) == 1 for batch in batches)
    assert order[-8:] == sorted(order[-8:])


def test_modality_order_depends_on_its_generator_alone():
    lengths = [(-1) ** i * (i + 1) for i in range(60)]
    torch.manual_seed(0)
    first = modality_length_order(lengths, 4, 1, generator(1))
    torch.manual_seed(1)
    assert modality_length_order(lengths, 4, 1, generator(1)) == first
    assert modality_length_order(lengths, 4, 1, generator(2)) != first


def test_modality_order_refuses_empty_samples_and_batches():
    with pytest.raises(ValueError, match="position 1 has length 0"):
        modality_length_order([1, 0, -1], 2, 1, generator())
    with pytest.raises(ValueError, match="at least 1; got 0 and 1"):
        modality_length_order([1, -1], 0, 1, generator())
