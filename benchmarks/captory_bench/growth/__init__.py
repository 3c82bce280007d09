"""More images, more steps, more clients."""
