"""Files that are written whole or not at all, and locks."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils import require

# How the names of files begin that are still being written.
HALF_WRITTEN = ".half-written-"


# Can only be read by setting it, which is safe here, before there are threads.
UMASK = os.umask(0o077)
os.umask(UMASK)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path in the folder of `path` that takes its place when the block ends.

    A block that raises leaves `path` as it was and nothing beside it, so no reader ever sees a
    half-written file.

    Parameters
    ----------
    path : path-like
        The file to write. Missing folders are made.

    Yields
    ------
    pathlib.Path
        Where to write. It keeps the suffixes of `path`, which some writers insist on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes)
    sweep_half_written(path.parent)
    names = {"prefix": half_written_prefix(), "suffix": suffix}
    handle, name = tempfile.mkstemp(**names, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; what is published follows the user's umask.
        temporary.chmod(0o666 & ~UMASK)
        os.replace(temporary, path)
    except OSError as error:
        # These come without a word about which file it was.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise OSError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def half_written_prefix() -> str:
    """How the names of this process's half-written files and folders begin."""
    # Another machine may write to the same folder: its process numbers say nothing here.
    return f"{HALF_WRITTEN}{socket.gethostname()}-{os.getpid()}-"


def sweep_half_written(folder: Path) -> None:
    """Delete what killed processes of this machine have left half-written in `folder`."""
    start = half_written_prefix().removesuffix(f"{os.getpid()}-")
    for path in folder.glob(f"{glob.escape(start)}*"):
        number = path.name.removeprefix(start).partition("-")[0]
        if number.isdecimal() and _is_gone(int(number)):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_gone(process):
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass  # It is somebody else's.
    return False


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock on `path`, which is made and deleted; ends with the process, however that ends.

    Raises
    ------
    ValueError
        With the text `refusal`, if another process holds it.
    OSError
        If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(refusal) from None
        # Its holder may have deleted it after it was opened here.
        require(os.fstat(file.fileno()).st_nlink, refusal)
        try:
            yield
        finally:
            # Before it is released: who opened it meanwhile still finds it locked.
            path.unlink(missing_ok=True)


def require_writable(folder: str | os.PathLike) -> None:
    """Raise ValueError unless a file can be made in `folder`."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def file_digest(path: str | os.PathLike, algorithm: str = "md5") -> str:
    """Hexadecimal digest of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
