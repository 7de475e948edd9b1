"""Several machines: who they are, how they meet, and what they cost each other.

Needs no TensorFlow, but for what `scaling` measures.

python cluster.py local 2 run_bnn.py --data_set digits    # two workers on this machine
python cluster.py scaling --rate 60                       # where more workers stop paying
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from utils import NetworkParams, is_whole, one_line_errors, require

# Of waiting; with what imports take, a command that waits in vain ends within a minute.
MEETING_SECONDS = 30
# The first of them is the chief.
JOBS = ("chief", "worker")
# What the chief answers when all are there; anything else says what went wrong.
GO = "go"
INTERRUPTED = 130
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
    def is_chief(self):
        return self.index == 0

    def name(self, index):
        """Worker `index`, as messages call it."""
        return f"worker {index} ({self.addresses[index]})"

    def lost(self, message=""):
        """Indices of the workers that an error message blames, or else that refuse connections."""
        _, _, unhealthy = message.partition("unhealthy")
        return sorted(set(map(int, re.findall(r"/task:(\d+)", unhealthy))) - {self.index}) or [
            i for i in range(len(self.addresses)) if i != self.index and not self.answers(i)
        ]

    def answers(self, index):
        """Does the worker accept a connection?"""
        try:
            socket.create_connection(_split(self.addresses[index]), timeout=2).close()
        except OSError:
            return False
        return True

    def meet(self, seconds=MEETING_SECONDS):
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


def cluster_from_environment(environment=os.environ):
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


def _receive_reports(cluster, server, deadline):
    present, verdict = {}, GO
    others = range(1, len(cluster.addresses))
    while len(present) < len(others) and verdict == GO:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            verdict = _missing(cluster, [i for i in others if i not in present])
            break
        report = _read_report(connection)
        if report.get("index") not in others or report["index"] in present:
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
    while not verdict and (patience := deadline - time.monotonic()) > 0:
        report = {"index": cluster.index, "addresses": cluster.addresses, "patience": patience}
        with (
            contextlib.suppress(OSError),
            socket.create_connection(_split(cluster.addresses[0]), patience) as connection,
        ):
            connection.sendall(json.dumps(report).encode() + b"\n")
            connection.settimeout(patience + 2)
            with connection.makefile("rb") as file:
                verdict = file.read()
        if not verdict:
            time.sleep(0.2)
    verdict = verdict.decode() or _missing(cluster, [0])
    require(verdict == GO, verdict)


def _missing(cluster, indices):
    return (
        f"{', '.join(map(cluster.name, indices))} did not answer: start the same command on every "
        "machine at the same time, and see that they reach each other"
    )


# --- Workers on this machine ------------------------------------------------------------------


def free_ports(count):
    """That many ports of this machine on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


def local_environments(count):
    """TF_CONFIG of `count` workers on the loopback interface, beside this process's environment."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        {
            **os.environ,
            # As a worker sets it where it starts on its own.
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
        }
        for index in range(count)
    ]


def run_locally(count, command):
    """Run `command` in `count` workers on this machine and compare the weights they end with.

    The chief's output is shown, of the others the last line, if they fail.

    Parameters
    ----------
    count : int
    command : sequence of str
        A Python script, which prints `WEIGHTS` and a digest, and its arguments.

    Returns
    -------
    bool
        Did all end well, and with the same weights?
    """
    require(count >= 1, f"there must be at least one worker, not {count}")
    workers = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if index else None,
            text=True,
            encoding="utf-8",
        )
        for index, environment in enumerate(local_environments(count))
    ]
    lines = [[] for _ in workers]

    def read(index):
        for line in workers[index].stdout:
            lines[index].append(line.rstrip())
            if index == 0:
                print(line, end="", flush=True)

    readers = [threading.Thread(target=read, args=(index,)) for index in range(count)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    codes = [worker.wait() for worker in workers]
    for index in range(1, count):
        if codes[index]:
            print(f"worker {index}: {(lines[index] or ['no output'])[-1]}")
    digests = [
        [line.removeprefix(WEIGHTS) for line in of_worker if line.startswith(WEIGHTS)]
        for of_worker in lines
    ]
    for index, digest in enumerate(digests):
        print(f"worker {index} ended with exit code {codes[index]}, weights {' '.join(digest)}")
    same = all(digest and digest == digests[0] for digest in digests)
    print(f"{count} workers ended with {'the same' if same else 'DIFFERENT'} weights")
    return same and not any(codes)


# --- How it scales ----------------------------------------------------------------------------

PAPER = NetworkParams().layer_shapes((32, 32, 3), 10)
# Sums of a step that follow one another: one for all gradients and, as each layer waits for the one
# before, two for each batch norm.
ROUNDS = 2 * len(PAPER) + 1
EPOCH_IMAGES = 50_000
WORKERS = (1, 2, 4, 8, 16, 32, 64)
GBITS = (1, 10, 25, 100)
BENCHMARK = Path("output/benchmark.json")


def summed_bytes(shapes=PAPER, number=4):
    """Bytes that a training step sums over the workers.

    The gradients of latent weights and of batch norm's shifts and, always in float32, four numbers
    a unit for batch norm: the sums behind its mean and variance, and two for its gradient.

    Parameters
    ----------
    shapes : sequence of (fan-in, units)
    number : int
        Bytes of one number of a gradient. Latent weights are float32 in every precision, and so
        are their gradients: 4.
    """
    units = sum(units for _, units in shapes)
    return number * (sum(d * units for d, units in shapes) + units) + 4 * 4 * units


def communication_seconds(workers, bits_per_second, summed, latency=0.0, rounds=ROUNDS):
    """Time in which a step's sums go round a ring of workers.

    Each worker sends and receives 2(n − 1)/n of the bytes (Patarasuk and Yuan 2009), in 2(n − 1)
    hops for each of the sums that cannot be merged.

    Parameters
    ----------
    workers : int
        n.
    bits_per_second : float
        Of a worker's connection, in each direction.
    summed : float
        Bytes.
    latency : float
        Seconds of a hop.
    rounds : int
        Sums that follow one another.
    """
    hops = 2 * (workers - 1)
    return hops / workers * 8 * summed / bits_per_second + hops * latency * rounds


def epoch_seconds(workers, batch_size, rate, bits_per_second, summed, latency=0.0):
    """Model of the time of an epoch: compute/workers + communication, step after step.

    Parameters
    ----------
    batch_size : int
        Of all workers together.
    rate : float
        Images that one worker alone trains on in a second. That it is the same for smaller batches
        flatters many workers.
    """
    communication = communication_seconds(workers, bits_per_second, summed, latency)
    return EPOCH_IMAGES / batch_size * (batch_size / rate / workers + communication)


def paying_workers(seconds):
    """The most workers that still train more than half as fast as that many times one worker.

    Parameters
    ----------
    seconds : mapping
        From workers to the time of an epoch.
    """
    return max(n for n, time_of_n in seconds.items() if seconds[1] / time_of_n > n / 2)


def scaling_table(batch_size, rate, latency, links):
    """Lines of a Markdown table: workers against epoch times, and where they stop paying.

    Parameters
    ----------
    links : mapping
        From a column's title to bits per second.
    """
    summed = summed_bytes()
    epochs = {
        title: {n: epoch_seconds(n, batch_size, rate, bits, summed, latency) for n in WORKERS}
        for title, bits in links.items()
    }
    rows = [
        ["workers", "batch per worker", *links],
        ["---"] * (2 + len(links)),
        *(
            [str(n), f"{batch_size / n:g}", *(f"{epochs[title][n] / 60:.1f}" for title in links)]
            for n in WORKERS
        ),
        ["pays up to", "", *(str(paying_workers(epochs[title])) for title in links)],
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def measured_link():
    """Transport between two local workers: (bits per second, seconds of a hop).

    From sums of the paper's gradients and of a few numbers, through TensorFlow.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "sum"], env=environment, stdout=subprocess.PIPE, text=True
        )
        for environment in local_environments(2)
    ]
    output = [process.communicate()[0] for process in processes]
    require(not any(process.returncode for process in processes), "the two workers failed")
    long, short = json.loads(output[0].splitlines()[-1])
    return communication_seconds(2, 1, summed_bytes()) / (long - short), short / 2


def print_sums():
    """What each of the two workers of `measured_link` does."""
    import graph_ops

    strategy, _ = graph_ops.training_strategy(cluster_from_environment(), batch_size=2)
    print(json.dumps([graph_ops.seconds_to_sum(strategy, shapes) for shapes in (PAPER, [(8,)])]))


def measured_rate(path=BENCHMARK):
    """Images a second of the paper's network, the fastest that `benchmark.py` wrote to `path`.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["training"]
        return max(row["images_per_s"] for row in rows if "images_per_s" in row)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} tells no rate: give --rate, or run make bench") from None


def scaling(args):
    rate = args.rate or measured_rate()
    require(rate > 0 and math.isfinite(rate), f"--rate must be a positive number, not {rate}")
    bits, latency = measured_link()
    print(
        f"Minutes an epoch of the paper's network, batch {args.batch_size}, at {rate:.0f} images/s "
        f"a worker; {summed_bytes() / 1e6:.1f} MB summed in a step "
        f"({summed_bytes(number=2) / 1e6:.1f} MB in bfloat16), a hop {latency * 1e6:.0f} µs.\n"
    )
    links = {f"{gbit} Gbit/s": gbit * 1e9 for gbit in GBITS}
    links[f"measured here: {bits / 1e9:.1f} Gbit/s"] = bits
    print("\n".join(scaling_table(args.batch_size, rate, latency, links)))


# --- Command line -----------------------------------------------------------------------------


def main(argv=None):
    cli = argparse.ArgumentParser(prog="cluster.py", description=__doc__.splitlines()[0])
    commands = cli.add_subparsers(dest="command", required=True)
    local = commands.add_parser("local", help="start workers on this machine")
    local.add_argument("workers", type=int)
    local.add_argument("script", nargs=argparse.REMAINDER, help="a Python script, its arguments")
    scale = commands.add_parser("scaling", help="time of an epoch for 1 to 64 workers")
    scale.add_argument("--rate", type=float, help=f"images/s of a worker (default: {BENCHMARK})")
    scale.add_argument("--batch_size", type=int, default=128, help="of all workers together")
    commands.add_parser("sum")
    args = cli.parse_args(argv)
    with one_line_errors("cluster.py"):
        if args.command == "local":
            # Ctrl-C reaches the workers, too, and they say what there is to say.
            with contextlib.suppress(KeyboardInterrupt):
                raise SystemExit(not run_locally(args.workers, args.script))
            raise SystemExit(INTERRUPTED)
        if args.command == "sum":
            print_sums()
        else:
            scaling(args)


if __name__ == "__main__":
    main()
