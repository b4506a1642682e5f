"""What users hold: problems, estimates and results, and files of these.

Orchestration: methods build, call what is above, and package. Start with `problem`.
"""
