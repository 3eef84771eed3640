"""Training phases: align the projector, tune projector and adapters or the whole language model."""
