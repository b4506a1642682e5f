"""What is done with estimates: standard errors of outputs, bootstraps, optimal instruments, importance sampling.

Works on estimates as arguments; never imports problems. Start with `delta_method`.
"""
