"""Download CIFAR-10 or MNIST: `python data/download_data.py --data_set MNIST`, from anywhere.

What is complete is verified and kept, without a look at the network. A file takes its place only
when it has the published md5 sum, so none is ever seen half-written, also by a second download
into the same folder.
"""

import argparse
import gzip
import os
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pooch
import requests

if __name__ == "__main__":
    # A script finds only the modules of its own folder; `data` and `utils` lie one above.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.load_data import ARCHIVES, DATA_SETS, MD5, MIRRORS, data_folder, ways_out
from files import atomic_path, file_digest
from utils import one_line_errors, require

TIMEOUT = 30  # seconds without a byte


def download(data_set: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Make a data set complete, from the first mirror that has it.

    CIFAR-10's archive stays in the folder, from which a damaged batch is replaced without a
    network; one that was put there by hand will do.

    Parameters
    ----------
    data_set : {"cifar-10", "MNIST", "digits"}
        "digits" needs no files.
    data_dir : path-like, optional
        Where `cifar-10-batches-py/` or `mnist/` are to lie, as in `data.load_data.data_folder`.
        It is made if missing.

    Returns
    -------
    pathlib.Path
        The data folder.

    Raises
    ------
    FileNotFoundError
        If no mirror gives the published files; the message tells the ways out.
    ValueError
        If the data set is unknown or `data_dir` is not a folder.
    """
    require(data_set in DATA_SETS, f"unknown data set {data_set!r}: {', '.join(DATA_SETS)}")
    folder = data_folder(data_dir)
    wanted = [name for name, md5 in MD5[data_set].items() if not _is(folder / name, md5)]
    for archive, md5 in ARCHIVES.get(data_set, {}).items() if wanted else ():
        _fetch(data_set, folder, archive, md5)
        _extract(folder / archive, {name: MD5[data_set][name] for name in wanted}, folder)
    for name in () if data_set in ARCHIVES else wanted:
        _fetch(data_set, folder, name, MD5[data_set][name])
    return folder


def _is(path, md5):
    return path.is_file() and file_digest(path) == md5


def _fetch(data_set, folder, name, md5):
    """Bring `folder`/`name` from a mirror, unless it is there with the right md5 sum."""
    target = folder / name
    if _is(target, md5):
        return
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)
    pooch.get_logger().setLevel("WARNING")
    reasons = []
    for mirror in MIRRORS[data_set]:
        url, md5_sum = mirror + target.name, f"md5:{md5}"
        try:
            # Inside it, as pooch would leave a file that only its owner can read.
            with atomic_path(target) as temporary:
                where = {"fname": temporary.name, "path": temporary.parent}
                pooch.retrieve(url, md5_sum, **where, downloader=downloader)
            return
        # A wrong md5 sum is a ValueError. A full disk is neither, and no reason for another mirror.
        except (requests.RequestException, ValueError) as error:
            reasons.append(f"{mirror}: {type(error).__name__}: {_first_words(error)}")
    raise FileNotFoundError(
        f"cannot download {target.name} ({'; '.join(reasons)}): {ways_out(data_set, folder)}"
    )


def _first_words(error, length=120):
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[:length] + "…"


def _extract(archive, wanted, folder):
    """Write the members `wanted` ({name: md5}), and nothing else, from `archive` to `folder`.

    Names and places come from the table, never from the archive, so none can lie outside.
    """
    try:
        with tarfile.open(archive) as members:
            for name, md5 in wanted.items():
                found = name in members.getnames() and members.getmember(name).isfile()
                require(found, f"{archive} holds no file {name}")
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(members.extractfile(name).read())
                    same = file_digest(temporary) == md5
                    require(same, f"{name} in {archive} is not the published")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is not a whole archive: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    cli = argparse.ArgumentParser(
        prog="download_data.py", description="Download CIFAR-10 or MNIST."
    )
    cli.add_argument("--data_set", required=True, choices=[name for name in DATA_SETS if MD5[name]])
    cli.add_argument("--data_dir", help="folder (default: $BNN_DATA_DIR, else data/)")
    args = cli.parse_args(argv)
    with one_line_errors("download_data.py"):
        print(f"{args.data_set} is complete in {download(args.data_set, args.data_dir)}")


if __name__ == "__main__":
    main()
