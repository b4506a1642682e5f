"""Demand and pricing of all markets at given parameters: every output as a pure, differentiable function.

Imports `economy` and `kernels`; knows of no moments and no estimates. Start with `parameters`, then `demand` and
`model`.
"""
