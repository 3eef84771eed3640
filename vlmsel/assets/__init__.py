"""The tiny pretrained backbones of the embedded default: `clip` (open_clip) and `llama` (transformers) with its
tokenizer.

`tools/build_tiny_backbones.py` makes them and says how. `aligned` is the model on both after the alignment of
`vlmsel demo --preset full`; `tools/build_aligned.py` makes it.
"""
