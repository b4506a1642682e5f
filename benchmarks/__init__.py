"""Benchmarks of blpjax beside PyBLP: `make bench`, or `python -m benchmarks --help`."""
