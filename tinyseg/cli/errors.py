"""Which errors are for the user, and in which words."""

import sys


def explain(error: BaseException) -> str | None:
    """The message for an error that the user can put right; None for one that is ours and keeps its traceback."""
    if isinstance(error, _user_errors()):
        settings = ". The settings are train.batch and augment.crop, and for predictions --tile"
        return f"{error}{settings if isinstance(error, MemoryError) else ''}"
    if isinstance(error, MemoryError):
        return (
            f"not enough memory ({error or 'no detail'}); use a smaller train.batch, smaller images (augment.crop)"
            " or a smaller network, and for predictions --tile"
        )
    return None


def _user_errors() -> tuple[type[BaseException], ...]:
    """The classes, without importing the modules that define them: an error of theirs would have done so."""
    classes = []
    for module, name in (
        ("tinyseg.train.errors", "UserError"),
        ("tinyseg.data.sample", "DataError"),
        ("tinyseg.interop.errors", "WeightsError"),
        ("tinyseg.cuda.errors", "CudaError"),
    ):
        if module in sys.modules:
            classes.append(getattr(sys.modules[module], name))
    return tuple(classes)
