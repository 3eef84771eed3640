"""Samples of the tiny vision-language model for the tests of training."""

import torch
from tiny_models import TinyBatch, pad, random_batch
from torch.distributed.tensor import DTensor


class Pool(torch.utils.data.Dataset):
    """Samples of one batch, one by one: (ids, labels, images)."""

    def __init__(self, images, seed=0):
        whole = random_batch(images_per_sample=images, seed=seed)
        self.items = []
        for row in range(len(images)):
            real = whole.attention_mask[row].bool()
            used = whole.image_index[whole.image_samples == row]
            pixels = [whole.pixel_values[i].clone() for i in used]
            self.items.append((row, whole.input_ids[row, real].tolist(), whole.labels[row, real].tolist(), pixels))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def collate(items):
    images = [image for *_, pixels in items for image in pixels]
    counts = torch.tensor([len(pixels) for *_, pixels in items])
    return TinyBatch(
        input_ids=pad([ids for _, ids, _, _ in items], 258, False),
        labels=pad([labels for _, _, labels, _ in items], -100, False),
        attention_mask=pad([[1] * len(ids) for _, ids, _, _ in items], 0, False),
        pixel_values=torch.stack(images) if images else None,
        image_index=torch.arange(len(images)),
        image_samples=torch.repeat_interleave(torch.arange(len(items)), counts),
        uids=torch.tensor([100 + row for row, *_ in items]),
    )


def weights(model):
    """Return a model's weights, those in shards gathered from all processes."""
    state = model.state_dict()
    return {name: x.full_tensor() if isinstance(x, DTensor) else x.clone() for name, x in state.items()}
