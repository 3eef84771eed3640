"""Benchmarks of text: multiple choice and GLUE."""
