"""Thousands of estimations as one job: Monte Carlo studies, and the command that runs them.

Imports `problem` and `simulation`. Start with `monte_carlo`.
"""
