"""What users hold: problems and results, and files of these.

Orchestration: methods build, call what is above, and package. Start with `problem`.
"""
