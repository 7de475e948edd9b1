"""Download CIFAR-10 or MNIST: `python data/download_data.py --data_set MNIST`, from anywhere.

What is complete is verified and kept, without a look at the network. A file takes its place only
when it has the published md5 sum, so none is ever seen half-written, also by a second download
into the same folder.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script finds only the modules of its own folder; `data` and `utils` lie one above.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 16  # bytes


def download(data_set, data_dir=None):
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
