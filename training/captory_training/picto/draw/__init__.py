"""How each kind of object and each background is painted."""
