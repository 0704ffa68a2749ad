"""Benchmarks of this machine: what was measured, beside the limit it is held against. `python -m engine.bench`."""
