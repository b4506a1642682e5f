"""All markets side by side: arrays padded into a few buckets, who owns what, characteristics as functions.

The only place that maps kernels over markets is `mapping`. Imports `inputs` and `kernels`. Start with `buckets`.
"""
