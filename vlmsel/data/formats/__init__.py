"""Forms of a pool: one module per form reads and writes its records."""
