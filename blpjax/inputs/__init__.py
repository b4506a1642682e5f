"""Tables to checked NumPy arrays: formulas, fixed effects, nodes, instruments, and everything that is refused.

Runs on the host and never imports JAX. Imports `iteration`, `machine`, `exceptions` and `options`. Start with
`formulation` and `tables`.
"""
