"""Per-sample gradients of any model, as factors that are never formed unless asked for."""
