"""Files appear whole or not at all."""

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import files

ROOT = Path(__file__).resolve().parent.parent


def test_atomic_path_replaces_the_file(tmp_path):
    target = tmp_path / "new" / "file.txt"
    files.write_text(target, "first")
    files.write_text(target, "second")
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    code = f"""
import os, files
with files.atomic_path({str(tmp_path / "file.txt")!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(files.HALF_WRITTEN)
    beside = tmp_path / "beside"
    with files.atomic_path(tmp_path / "file.txt") as living:
        # What a living process writes, another machine wrote, or means nothing, stays.
        strangers = {f"{files.HALF_WRITTEN}elsewhere-1-a", f"{files.HALF_WRITTEN}b"}
        for name in strangers:
            (tmp_path / name).touch()
        files.write_text(beside, "")
        found = {path.name for path in tmp_path.iterdir()}
    assert found == {living.name, beside.name, *strangers}


@pytest.mark.parametrize("number", ["9" * 30, "2147483647"])
def test_a_number_of_no_process_is_swept(number, tmp_path):
    (tmp_path / f"{files.HALF_WRITTEN}{socket.gethostname()}-{number}-x").touch()
    files.write_text(tmp_path / "file.txt", "")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
