"""The two passes over a pool: every scorer x every target at once, and the table they end in."""
