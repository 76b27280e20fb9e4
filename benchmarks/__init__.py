"""What the system costs and withstands, measured: python -m benchmarks.THEME --json prints one JSON line last."""
