"""What a choice will take before it runs: counts, costs, hardware, lengths, forecast. Nothing is loaded."""
