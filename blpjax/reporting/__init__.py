"""Tables and progress lines as text, and numbers as labelled frames, from plain arrays.

Knows nothing of problems or models. Start with `report`.
"""
