"""Batches on their way to a GPU: each is copied there while the network works on the one before."""

import contextlib
from collections.abc import Iterator

from tinyseg import cuda
from tinyseg.data import Batch


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, with their arrays on the GPU. Leaving the loop early ends `batches` too."""
    with contextlib.closing(batches):  # type: ignore[type-var]  a generator
        coming: Batch | None = None
        for batch in batches:
            ready = coming
            if ready is not None:
                cuda.finish_uploads()
            coming = batch.map(cuda.start_upload)  # while `ready` is worked on
            if ready is not None:
                yield ready
        if coming is not None:
            cuda.finish_uploads()
            yield coming
