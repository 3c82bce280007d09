"""Each graph alone, by rows a batch."""
