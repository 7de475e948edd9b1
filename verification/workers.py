"""The solver in processes of its own, so that a killed or endless one costs one verdict only."""

import contextlib
import multiprocessing
import signal
import time

import numpy as np

from packed.program import Program
from verification.constraints import TooLarge
from verification.encoding import Encoding
from verification.solver import solve

# Seconds that a solver may take to stop by itself.
GRACE = 5.0


def search_or_prove(
    program: Program, scores: np.ndarray, image: np.ndarray, label: int, radius: int, seconds: float
) -> tuple[bool | None, np.ndarray | None]:
    """An image within `radius` of `image` that gets another label, or the proof that none does.

    Parameters
    ----------
    program, scores, image, label, radius
        See `verification.encoding.Encoding`.
    seconds : float
        The most that it may take.

    Returns
    -------
    bool or None
        Is there such an image? None if time or memory were too short.
    image : ndarray of uint8 or None
        If there is one.
    """
    start = time.perf_counter()
    try:
        encoding = Encoding(program, scores, image, label, radius)
    except (TooLarge, MemoryError):
        return None, None
    if not encoding.wins:
        return False, None
    return solve(encoding, max(0.0, seconds - (time.perf_counter() - start)))


class Worker:
    """A process that answers `search_or_prove` for one network.

    Parameters
    ----------
    program, scores
        See `verification.encoding.Encoding`.
    """

    def __init__(self, program: Program, scores: np.ndarray):
        self._network = program, scores
        self._process = self._connection = None

    def __call__(self, image, label, radius, seconds):
        """As `search_or_prove`; also None where the process was killed or did not stop in time."""
        if self._process is None or not self._process.is_alive():
            self.start()
        with contextlib.suppress(EOFError, OSError):
            self._connection.send((image, label, radius, seconds))
            if self._connection.poll(seconds + GRACE):
                return self._connection.recv()
        self.close()
        return None, None

    def start(self) -> None:
        """Start the process."""
        # A fresh process, as a fork of one that runs TensorFlow may hang.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, *self._network)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection, program, scores):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this.
    with contextlib.suppress(EOFError):
        while True:
            image, label, radius, seconds = connection.recv()
            connection.send(search_or_prove(program, scores, image, label, radius, seconds))
