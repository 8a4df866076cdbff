"""What many tests wait for, done beside them: the compilers work on all cores while the tests run on one.

It is begun when all tests of kernels are to run, and never for a few of them: a compiler takes a second for each
of some hundred sources.
"""

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_begun: dict[Hashable, Future] = {}
_workers: list[ThreadPoolExecutor] = []


def begin(key: Hashable, work: Callable, *arguments: Any) -> None:
    """Have work(*arguments) done. It must leave Python's lock alone, or nothing is gained."""
    if not _workers:
        _workers.append(ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compile-ahead"))
    _begun[key] = _workers[0].submit(work, *arguments)


def result(key: Hashable, work: Callable, *arguments: Any) -> Any:
    """What it gave, or work(*arguments) if its turn has not come yet."""
    future = _begun.pop(key, None)
    if future is None or future.cancel():
        return work(*arguments)
    return future.result()


def end() -> None:
    """Leave out what has not been begun."""
    for workers in _workers:
        workers.shutdown(wait=True, cancel_futures=True)
    _workers.clear()
    _begun.clear()
