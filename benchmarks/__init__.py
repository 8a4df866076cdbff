"""Benchmarks: tinyseg and PyTorch, on the same numbers, alternately in one process. See `__main__.py`."""
