"""Data from parameters: simulated products, agents, equilibria.

Imports `problem`, whose problems it makes. Start with `simulation`.
"""
