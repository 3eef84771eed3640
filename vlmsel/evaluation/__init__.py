"""Benchmarks: readers of the official files, metrics by the official rules, and a resumable run over the questions."""
