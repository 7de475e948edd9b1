"""The workers of one training: who they are, and how they meet. Needs no TensorFlow."""

import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping

from utils import is_whole, require

# Of waiting; with what imports take, a command that waits in vain ends within a minute.
MEETING_SECONDS = 30
# Whoever has waited that long says for whom.
NOTICE_SECONDS = 5
# The first of them is the chief.
JOBS = ("chief", "worker")
# What the chief answers when all are there; anything else says what went wrong.
GO = "go"
# Each worker prints it at the end, before the digest of its weights.
WEIGHTS = "weights sha256 "


# --- Who they are -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of one training.

    Parameters
    ----------
    addresses : tuple of str
        host:port of each worker, the chief first.
    index : int
        Of this one among them.
    """

    addresses: tuple
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def name(self, index: int) -> str:
        """Worker `index`, as messages call it."""
        return f"worker {index} ({self.addresses[index]})"

    def lost(self, message: str = "") -> list[int]:
        """Indices of the workers that an error message blames, or else that refuse connections."""
        _, _, unhealthy = message.partition("unhealthy")
        return sorted(set(map(int, re.findall(r"/task:(\d+)", unhealthy))) - {self.index}) or [
            i for i in range(len(self.addresses)) if i != self.index and not self.answers(i)
        ]

    def answers(self, index: int) -> bool:
        """Does the worker accept a connection?"""
        try:
            socket.create_connection(_split(self.addresses[index]), timeout=2).close()
        except OSError:
            return False
        return True

    def meet(self, seconds: float = MEETING_SECONDS) -> None:
        """Wait until every worker is there.

        TensorFlow waits without end for a worker that never comes, and cannot be interrupted
        while it does. So the workers first report to the chief, on the address that TensorFlow
        takes over, and all go on or fail together.

        Raises
        ------
        ValueError
            Naming whoever did not come in time, or has another cluster in its TF_CONFIG.
        """
        deadline = time.monotonic() + seconds
        # Shows, too, that the port is free before TensorFlow is told to listen on it.
        with _listening(self.addresses[self.index]) as server:
            if self.is_chief:
                _receive_reports(self, server, deadline)
        if not self.is_chief:
            _report(self, deadline)


def _split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def _is_address(value):
    found = isinstance(value, str) and re.fullmatch(r"[^\s:/]+:(\d{1,5})", value)
    return bool(found) and 0 < int(found[1]) < 2**16


def cluster_from_environment(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that TF_CONFIG describes.

    Parameters
    ----------
    environment : mapping

    Returns
    -------
    Cluster or None
        None without TF_CONFIG, and where it lists a single worker or none.

    Raises
    ------
    ValueError
        If TF_CONFIG contradicts itself, or lists what cannot train synchronously.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}): {text[:60]!r}") from None
    require(isinstance(config, dict), f"TF_CONFIG must be a JSON object, not {text[:60]!r}")
    jobs = config.get("cluster") or {}
    require(isinstance(jobs, dict), "TF_CONFIG: cluster must map jobs to lists of host:port")
    if not jobs:
        return None
    unknown = sorted(set(jobs) - set(JOBS))
    require(not unknown, f"TF_CONFIG: only {' and '.join(JOBS)} can train, not {unknown}")
    for job, addresses in jobs.items():
        require(
            isinstance(addresses, list) and all(map(_is_address, addresses)),
            f"TF_CONFIG: {job} must be a list of host:port, not {addresses!r}",
        )
    addresses = [address for job in JOBS for address in jobs.get(job, [])]
    require(len(jobs.get("chief", [])) <= 1, "TF_CONFIG: there can only be one chief")
    require(len(set(addresses)) == len(addresses), "TF_CONFIG lists an address twice")
    index = addresses.index(_own_address(config.get("task"), jobs))
    return Cluster(tuple(addresses), index) if len(addresses) > 1 else None


def _own_address(task, jobs):
    require(
        isinstance(task, dict) and task.get("type") in (*jobs,) and is_whole(task.get("index")),
        f"TF_CONFIG: task must name this worker's type ({' or '.join(jobs)}) and index, "
        f"not {task!r}",
    )
    addresses = jobs[task["type"]]
    require(
        0 <= task["index"] < len(addresses),
        f"TF_CONFIG: task index {task['index']} is missing from the cluster, "
        f"which lists {task['type']} 0 to {len(addresses) - 1}",
    )
    return addresses[task["index"]]


# --- How they meet ----------------------------------------------------------------------------


def _listening(address):
    try:
        return socket.create_server(("", _split(address)[1]))
    except OSError as error:
        raise ValueError(
            f"cannot listen on {address}, this worker's address in TF_CONFIG: {error.strerror}"
        ) from None


@contextlib.contextmanager
def _said_if_long(cluster, missing):
    """Print whom the block waits for, the workers that `missing()` lists, if it takes long."""

    def say():
        names = ", ".join(map(cluster.name, missing()))
        print(f"waiting for {names}", file=sys.stderr, flush=True)

    timer = threading.Timer(NOTICE_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _receive_reports(cluster, server, deadline):
    present, verdict = {}, GO
    others = range(1, len(cluster.addresses))

    def missing():
        return [i for i in others if i not in present]

    with _said_if_long(cluster, missing):
        while missing() and verdict == GO:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                verdict = _did_not_answer(cluster, missing())
                break
            report = _read_report(connection)
            if report.get("index") not in missing():
                connection.close()  # Whatever that was.
                continue
            present[report["index"]] = connection
            # None of them gives up before it is told.
            deadline = min(deadline, time.monotonic() + report.get("patience", 0))
            if report.get("addresses") != list(cluster.addresses):
                name = cluster.name(report["index"])
                verdict = f"{name} has another cluster in its TF_CONFIG than the chief"
    for connection in present.values():
        with connection, contextlib.suppress(OSError):
            connection.settimeout(1)
            connection.sendall(verdict.encode())
            connection.shutdown(socket.SHUT_WR)
            # The worker closes first, so that the chief's port is free at once.
            connection.recv(1)
    require(verdict == GO, verdict)


def _read_report(connection):
    try:
        connection.settimeout(2)
        with connection.makefile("rb") as file:
            report = json.loads(file.readline(10**6))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _report(cluster, deadline):
    verdict = b""
    with _said_if_long(cluster, lambda: [0]):
        while not verdict and (patience := deadline - time.monotonic()) > 0:
            verdict = _verdict_of_chief(cluster, patience)
            if not verdict:
                time.sleep(0.2)
    verdict = verdict.decode() or _did_not_answer(cluster, [0])
    require(verdict == GO, verdict)


def _verdict_of_chief(cluster, patience):
    """What the chief answers to a report; nothing where it is not there."""
    report = {"index": cluster.index, "addresses": cluster.addresses, "patience": patience}
    with (
        contextlib.suppress(OSError),
        socket.create_connection(_split(cluster.addresses[0]), patience) as connection,
    ):
        connection.sendall(json.dumps(report).encode() + b"\n")
        connection.settimeout(patience + 2)
        with connection.makefile("rb") as file:
            return file.read()
    return b""


def _did_not_answer(cluster, indices):
    return (
        f"{', '.join(map(cluster.name, indices))} did not answer: start the same command on every "
        "machine at the same time, and see that they reach each other"
    )
