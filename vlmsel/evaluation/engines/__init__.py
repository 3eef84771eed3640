"""Engines: what an evaluation asks of a model, one module per make."""
