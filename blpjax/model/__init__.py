"""Demand and pricing of all markets at given parameters: every output as a pure, differentiable function.

`formulated` is what formulations make of tables, for problems and simulations alike. Imports `economy` and `kernels`;
knows of no moments and no estimates. Start with `parameters`, then `demand` and `model`.
"""
