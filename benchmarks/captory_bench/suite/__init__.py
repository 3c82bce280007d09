"""All benchmarks in a row."""
