"""Pure JAX functions of one market."""
