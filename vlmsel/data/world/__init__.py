"""The embedded world: drawn scenes with captions, instructions and questions, so that everything runs offline."""
