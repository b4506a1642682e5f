"""One market in pure JAX: shares, their inversion, markups, equilibrium prices, substitution.

Formulas read like the papers: J products, I agents, K2 characteristics. Kernels import JAX, equinox, `exceptions`,
`iteration` and each other; loops are in `fixed_point`, the one derivative rule is in `implicit`. Start with `shares`.
"""
