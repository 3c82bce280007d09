"""The Python client and the `captory` command."""
