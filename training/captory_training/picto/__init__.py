"""Picto: a small procedural picture world with exact labels, to train and to measure Captory's models."""
