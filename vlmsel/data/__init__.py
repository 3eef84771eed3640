"""Data: samples, conversation templates, token ids with exact labels, images, batches and the embedded world."""
