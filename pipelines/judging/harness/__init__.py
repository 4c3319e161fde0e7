"""Benchmarks that lm-evaluation-harness asks and grades."""
