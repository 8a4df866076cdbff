"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from tinyseg.train import files
from tinyseg.train.errors import RunFolderError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path, full_disk):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    with full_disk(), pytest.raises(RunFolderError, match=r"cannot write .*file: the disk is full; make room"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_really_full_device_is_reported(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="the disk is full"):
        files.append_line(path, "{}")


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl", reason="locks of this kind are not known to Windows")
    with files.locked(tmp_path), pytest.raises(RunFolderError, match="another process is at work in"):
        files.locked(tmp_path).__enter__()
    with files.locked(tmp_path):
        pass


def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunFolderError, match="a file stands where a folder is needed"):
        files.make_folder(tmp_path / "runs" / "one")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_reported(tmp_path, code):
    error = OSError(code, os.strerror(code))
    assert "may not be written to; choose another one with --out" in str(files.explained(error, tmp_path))
