"""Workers on this machine, and what several machines cost each other.

python -m tools.workers local 2 run_bnn.py --data_set digits    # two workers on this machine
python -m tools.workers scaling --rate 60                       # where more workers stop paying
"""

import argparse
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from distribute.cluster import WEIGHTS, cluster_from_environment
from tools import benchmark
from utils import NetworkParams, one_line_errors, require

PROGRAM = "python -m tools.workers"
ROOT = Path(__file__).parent.parent
INTERRUPTED = 130


# --- Workers on this machine ------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """That many ports of this machine on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


def local_environments(count: int) -> list[dict[str, str]]:
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


def run_locally(count: int, command: Sequence[str]) -> bool:
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

    Raises
    ------
    ValueError
        If there is no such script, or not a single worker.
    """
    require(count >= 1, f"there must be at least one worker, not {count}")
    require(Path(command[0]).is_file(), f"there is no script {command[0]}")
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
    lines = _lines_of(workers)
    codes = [worker.wait() for worker in workers]
    for index in range(1, count):
        if codes[index]:
            print(f"worker {index}: {(lines[index] or ['no output'])[-1]}")
    return _compare_weights(codes, lines)


def _lines_of(workers):
    """What each of the processes prints until it ends; the chief's is shown meanwhile."""
    lines = [[] for _ in workers]

    def read(index):
        for line in workers[index].stdout:
            lines[index].append(line.rstrip())
            if index == 0:
                print(line, end="", flush=True)

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(workers))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return lines


def _compare_weights(codes, lines):
    digests = [
        [line.removeprefix(WEIGHTS) for line in of_worker if line.startswith(WEIGHTS)]
        for of_worker in lines
    ]
    for index, digest in enumerate(digests):
        weights = f"weights {' '.join(digest)}" if digest else "no weights"
        print(f"worker {index} ended with exit code {codes[index]}, {weights}")
    same = all(digest == digests[0] for digest in digests)
    if all(digests):
        print(f"{len(codes)} workers ended with {'the same' if same else 'DIFFERENT'} weights")
    return same and all(digests) and not any(codes)


# --- How it scales ----------------------------------------------------------------------------

PAPER = NetworkParams().layer_shapes((32, 32, 3), 10)
# Sums of a step that follow one another: one for all gradients and, as each layer waits for the one
# before, two for each batch norm.
ROUNDS = 2 * len(PAPER) + 1
EPOCH_IMAGES = 50_000
WORKERS = (1, 2, 4, 8, 16, 32, 64)
GBITS = (1, 10, 25, 100)


def summed_bytes(shapes: Sequence[tuple[int, int]] = PAPER, number: int = 4) -> int:
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


def communication_seconds(
    workers: int, bits_per_second: float, summed: float, latency: float = 0.0, rounds: int = ROUNDS
) -> float:
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


def epoch_seconds(
    workers: int,
    batch_size: int,
    rate: float,
    bits_per_second: float,
    summed: float,
    latency: float = 0.0,
) -> float:
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


def paying_workers(seconds: Mapping[int, float]) -> int:
    """The most workers that still train more than half as fast as that many times one worker.

    Parameters
    ----------
    seconds : mapping
        From workers to the time of an epoch.
    """
    return max(n for n, time_of_n in seconds.items() if seconds[1] / time_of_n > n / 2)


def scaling_table(
    batch_size: int, rate: float, latency: float, links: Mapping[str, float]
) -> list[str]:
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
        *(
            [n, f"{batch_size / n:g}", *(f"{epochs[link][n] / 60:.1f}" for link in links)]
            for n in WORKERS
        ),
        ["pays up to", "", *(paying_workers(epochs[link]) for link in links)],
    ]
    head = ["workers", "batch per worker", *links]
    return tabulate(rows, head, "github", disable_numparse=True).splitlines()


def measured_link() -> tuple[float, float]:
    """Transport between two local workers: (bits per second, seconds of a hop).

    From sums of the paper's gradients and of a few numbers, through TensorFlow.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tools.workers", "sum"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in local_environments(2)
    ]
    output = [process.communicate()[0] for process in processes]
    require(not any(process.returncode for process in processes), "the two workers failed")
    long, short = json.loads(output[0].splitlines()[-1])
    return communication_seconds(2, 1, summed_bytes()) / (long - short), short / 2


def print_sums() -> None:
    """What each of the two workers of `measured_link` does."""
    from distribute import devices

    strategy, _ = devices.training_strategy(cluster_from_environment(), batch_size=2)
    print(json.dumps([devices.seconds_to_sum(strategy, shapes) for shapes in (PAPER, [(8,)])]))


def measured_rate(path: Path | None = None) -> float:
    """Images a second of the paper's network: the fastest training that `tools.benchmark` measured.

    Parameters
    ----------
    path : pathlib.Path, optional
        By default the benchmark's file for this kind of processor.

    Raises
    ------
    ValueError
        If there is none.
    """
    path = path or benchmark.results_file(benchmark.machine())
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return max(row["median"] for row in rows if row["part"] == "training" and "median" in row)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} tells no rate: give --rate, or run make bench") from None


def scaling(args: argparse.Namespace) -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
    cli = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Workers on this machine, and what several machines cost each other.",
    )
    commands = cli.add_subparsers(dest="command", required=True)
    local = commands.add_parser("local", help="start workers on this machine")
    local.add_argument("workers", type=int)
    local.add_argument("script", help="a Python script")
    local.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the script")
    scale = commands.add_parser("scaling", help="time of an epoch for 1 to 64 workers")
    scale.add_argument(
        "--rate", type=float, help="images/s of a worker (default: that of make bench)"
    )
    scale.add_argument("--batch_size", type=int, default=128, help="of all workers together")
    commands.add_parser("sum")
    args = cli.parse_args(argv)
    with one_line_errors(PROGRAM):
        if args.command == "local":
            # Ctrl-C reaches the workers, too, and they say what there is to say.
            with contextlib.suppress(KeyboardInterrupt):
                raise SystemExit(not run_locally(args.workers, [args.script, *args.arguments]))
            raise SystemExit(INTERRUPTED)
        if args.command == "sum":
            print_sums()
        else:
            scaling(args)


if __name__ == "__main__":
    main()
