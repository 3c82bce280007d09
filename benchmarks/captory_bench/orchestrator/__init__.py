"""All but the graphs."""
