"""Cores, devices, files: what a numerical library needs and no economist asks about.

Compilation and its cache, placement on devices, spreading work over cores, batches that survive kills, files that hold
no code. Knows nothing of markets; imports `exceptions` and `options` only. Start with `spread` and `batches`.
"""
