"""Benchmarks with images: their official files, rules and result files."""
