"""The vectorised splice against a loop over tokens."""

import pytest
import torch
from tiny_models import random_batch

from vlmsel.models.splice import IGNORE, IMAGE_ID, plan_splice, splice_embeddings, splice_labels

PATCHES, WIDTH = 3, 2


def naive_splice(batch, text, patches, left):
    """Build every row token by token."""
    rows, labels = [], []
    queue = {row: list((batch.image_samples == row).nonzero()[:, 0]) for row in range(len(text))}
    for row in range(len(text)):
        pieces, marks = [], []
        for t in range(text.shape[1]):
            if not batch.attention_mask[row, t]:
                continue
            if batch.input_ids[row, t] == IMAGE_ID:
                pieces += list(patches[queue[row].pop(0)])
                marks += [IGNORE] * PATCHES
            else:
                pieces.append(text[row, t])
                marks.append(int(batch.labels[row, t]))
        rows.append(torch.stack(pieces))
        labels.append(marks)
    length = max(map(len, rows))
    out = torch.zeros(len(rows), length, WIDTH, dtype=text.dtype)
    marks = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        here = slice(length - len(row), length) if left else slice(0, len(row))
        out[i, here], marks[i, here], mask[i, here] = row, torch.tensor(labels[i]), 1
    return out, marks, mask


def pieces(batch):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(*batch.input_ids.shape, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(
        len(batch.image_samples), PATCHES, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True
    )
    return text, patches


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("padded_left", [False, True])
@pytest.mark.parametrize("images", [[1, 0, 2, 1], [0, 0], [3], [2, 2, 0]])
def test_equals_the_loop(images, padded_left, left):
    for seed in range(5):
        batch = random_batch(images_per_sample=images, seed=seed, left=padded_left)
        text, patches = pieces(batch)
        plan = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples, PATCHES, left)
        out, labels, mask = naive_splice(batch, text, patches, left)
        assert torch.equal(splice_embeddings(plan, text, patches if sum(images) else None), out)
        assert torch.equal(splice_labels(plan, batch.labels), labels)
        assert torch.equal(plan.attention_mask, mask)


def test_gradients_reach_every_patch_and_kept_token():
    batch = random_batch(images_per_sample=[1, 0, 2])
    text, patches = pieces(batch)
    plan = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples, PATCHES)
    splice_embeddings(plan, text, patches).sum().backward()
    kept = (batch.input_ids != IMAGE_ID) & batch.attention_mask.bool()
    assert torch.equal(patches.grad, torch.ones_like(patches))
    assert torch.equal(text.grad, kept[:, :, None].expand_as(text).double())


def test_image_rows_may_come_in_any_order():
    batch = random_batch(images_per_sample=[1, 0, 2, 1])
    text, patches = pieces(batch)
    plan = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples, PATCHES)
    order = torch.tensor([3, 1, 0, 2])  # the two images of row 2 keep their order
    other = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples[order], PATCHES)
    assert torch.equal(splice_embeddings(plan, text, patches), splice_embeddings(other, text, patches[order]))


@pytest.mark.parametrize("samples", [[0, 2, 2], [0, 1, 2, 3], [0, 2, 2, 3, 3]])
def test_other_numbers_of_images_than_placeholders_are_refused(samples):
    batch = random_batch(images_per_sample=[1, 0, 2, 1])
    with pytest.raises(ValueError, match=r"row \d of the batch has \d image placeholders .* and \d images"):
        plan_splice(batch.input_ids, batch.attention_mask, torch.tensor(samples), PATCHES)


def test_an_image_of_a_row_beyond_the_batch_is_refused():
    batch = random_batch(images_per_sample=[1, 0])
    with pytest.raises(ValueError, match="names row 5, the batch has 2 rows"):
        plan_splice(batch.input_ids, batch.attention_mask, torch.tensor([5]), PATCHES)
