"""How full the device is kept, and how interactive items and bulk jobs share it."""
