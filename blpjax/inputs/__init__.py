"""Tables to checked NumPy arrays."""
