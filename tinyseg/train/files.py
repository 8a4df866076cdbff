"""Files that are whole or not there: written under another name, forced to the disk, then renamed."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tinyseg.train.errors import RunFolderError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that every reader, and a computer that loses power, sees the old content or the new.

    Raises `RunFolderError` where the disk is full or the folder read-only; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        _remove(temporary)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file and hand it to the operating system at once."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise explained(error, path) from error


def make_folder(path: Path) -> None:
    """The folder and its parents; it is fine if they exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, path) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and refuse a second one. The system lets go when the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise explained(error, folder) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(f"another process is at work in {folder}; wait for its end, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def explained(error: OSError, path: Path) -> RunFolderError:
    """The error of a failed write, with the reason in words and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room, or choose another folder with --out"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason = "the folder may not be written to; choose another one with --out"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        reason = "a file stands where a folder is needed; choose another folder with --out"
    else:
        reason = error.strerror or str(error)
    return RunFolderError(f"cannot write {path}: {reason}")


def _sync_folder(folder: Path) -> None:
    """Force a rename to the disk. Windows cannot open folders, and needs no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return  # the folder is gone or read-only: the write's own error says so
