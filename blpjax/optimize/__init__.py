"""How it is minimised: any objective, any routine, one checked outcome.

Knows no economics: of the rest of the package it imports `machine`, `exceptions` and `options` only. Start with
`optimize`; `table` lists all routines.
"""
