"""Per-sample gradients on disk: written once while a pool is passed, scored from as often as one likes."""
