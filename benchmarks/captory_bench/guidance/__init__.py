"""Guidance at some noise levels only."""
