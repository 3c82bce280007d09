"""The performance page, from figures."""
