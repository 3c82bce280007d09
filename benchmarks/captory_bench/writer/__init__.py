"""Prompts a second: the embedded writer, the same weights on vLLM, and each asked one at a time."""
