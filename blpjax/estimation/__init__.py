"""One estimation, or many as lanes of one program: options, steps, starting values, estimates.

Brings an objective and an optimiser together. Imports everything above it. Start with `step`, then `lanes`.
"""
