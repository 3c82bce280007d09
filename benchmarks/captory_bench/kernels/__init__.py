"""Each graph against the machine's matrix multiplication."""
