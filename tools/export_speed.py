"""How fast is a network in C beside XLA and Larq Compute Engine, and how large is it?

python -m tools.export_speed                        # writes results/export_speed.csv and _size.csv
python -m tools.export_speed --peers DIR --python FILE   # DIR holds larq_predict.py

All run on one core, in turns. Rates are images per second of processor time, so that other work on
the machine counts as little as possible; the C program's include reading and printing. The networks
are untrained: weights change neither speed nor size.
"""

import argparse
import csv
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from files import atomic_path
from utils import NetworkParams, one_line_errors, require

if TYPE_CHECKING:
    from packed.run import PackedNetwork

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
MNIST = {"conv": (64, 64, 128, 128), "max_pool": (0, 1, 0, 1), "fc": (512,)}
DEMO = {"conv": (64, 64, 128), "max_pool": (0, 1, 0), "fc": (128,)}
# Shape of the images, and parameters.
NETWORKS = {
    "paper's, binary": ((32, 32, 3), {}),
    "paper's, ternary": ((32, 32, 3), {"levels": 3}),
    "boolnet": ((32, 32, 3), {"network": "boolnet"}),
    "MNIST, binary": ((28, 28, 1), MNIST),
    "MNIST, ternary": ((28, 28, 1), {**MNIST, "levels": 3}),
    "demo": ((8, 8, 1), DEMO),
}
COMPILERS = ("gcc", "clang")
FLAGS = ("-std=c99", "-O3", "-march=native")
TURNS = 5
# Images of a reading, 1000 of the others.
IMAGES = {"paper's, binary": 200, "paper's, ternary": 150, "boolnet": 200}
# The peer's own clock becomes that of the processor.
PEER = (
    "import runpy, sys, time; time.perf_counter = time.process_time; sys.path.insert(0, '.'); "
    "sys.argv[1:] = '--lce --batch_size 10 --groups 3'.split(); "
    "runpy.run_path('larq_predict.py', run_name='__main__')"
)


def built(compiler: str, folder: Path, flags: Sequence[str] = FLAGS) -> Path:
    """The program of the C files in `folder`, compiled."""
    program = folder / f"classify_{compiler}"
    command = [compiler, *flags, "-o", program, "network.c", "main.c", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    return program


def c_rate(program: Path, x: np.ndarray) -> float:
    """Images per second of processor time that a compiled program classifies."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([program], input=x.tobytes(), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, n) - getattr(before, n) for n in ("ru_utime", "ru_stime"))
    return len(x) / used


def xla_rate(packed: "PackedNetwork", x: np.ndarray, batch: int) -> float:
    """The same of a `PackedNetwork`, so many images at a time."""
    started = time.process_time()
    for start in range(0, len(x), batch):
        packed.predict(x[start : start + batch])
    return len(x) / (time.process_time() - started)


def peer_rate(python: str, folder: Path) -> float:
    """The same of Larq Compute Engine with one thread, on the paper's network."""
    done = subprocess.run([python, "-c", PEER], cwd=folder, capture_output=True, text=True)
    found = re.search(r"lce 1 threads: ([\d.]+) images/s", done.stdout)
    require(found is not None, f"{folder}/larq_predict.py failed: {done.stderr[-200:]}")
    return float(found[1])


def sizes(compiler: str, folder: Path, flags: Sequence[str]) -> dict:
    """Bytes of code, of constants and of static memory of `network.c`."""
    command = [compiler, *flags, "-c", "-o", "network.o", "network.c"]
    subprocess.run(command, cwd=folder, check=True)
    text = subprocess.run(
        ["size", "-A", "network.o"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    found = {"text": 0, "rodata": 0, "bss": 0}
    for section, count in re.findall(r"^\.(\w+)\S*\s+(\d+)", text, re.MULTILINE):
        if section in found:
            found[section] += int(count)
    return found


def measure(
    folder: Path, names: Sequence[str], peers: Path | None = None, python: str | None = None
) -> tuple[list[dict], list[dict]]:
    """Rows of speeds and of sizes of the networks `names`."""
    # Late, as it takes seconds, and after the process has its one core.
    from bnn import BinaryNeuralNetwork, PackedNetwork
    from export import c
    from tools.benchmark import machine

    compilers = [name for name in COMPILERS if shutil.which(name)]
    processor = machine()["processor"] + (", VPOPCNTDQ" if machine()["vector_popcount"] else "")
    contenders, size_rows = {}, []
    for name in names:
        in_dim, params = NETWORKS[name]
        network = BinaryNeuralNetwork(in_dim, 10, NetworkParams(**params))
        packed = PackedNetwork.from_network(network)
        own = folder / re.sub(r"\W+", "_", name)
        own.mkdir()
        for file, text in c.sources(packed.program).items():
            (own / file).write_text(text, encoding="utf-8")
        x = np.random.default_rng(0).integers(0, 256, (IMAGES.get(name, 1000), *in_dim))
        x = x.astype(np.uint8)
        for compiler in compilers:
            program = built(compiler, own)
            contenders[name, f"C, {compiler}"] = lambda p=program, x=x: c_rate(p, x)
        for batch in (1, 100):
            few = x[: 20 if batch == 1 else len(x)]
            contenders[name, f"XLA, batch {batch}"] = lambda p=packed, x=few, b=batch: xla_rate(
                p, x, b
            )
        small, large = (sizes("gcc", own, ("-std=c99", *flags)) for flags in (["-Os"], FLAGS[1:]))
        size_rows.append(
            {
                "network": name,
                "code, -Os": small["text"],
                "code, -O3 -march=native": large["text"],
                "weights": small["rodata"],
                "working memory": small["bss"],
            }
        )
    if peers:
        what = "paper's, binary", "Larq Compute Engine, batch 10"
        contenders[what] = lambda: peer_rate(python, peers)
    for (_, what), contender in contenders.items():
        if what.startswith("XLA"):
            contender()  # Compiles.
    rows = [
        {
            "processor": processor,
            "network": name,
            "what": what,
            "turn": turn,
            "images_per_s": round(contender(), 1),
        }
        for turn in range(1, TURNS + 1)
        for (name, what), contender in contenders.items()
    ]
    return rows, size_rows


def write(name: str, rows: Sequence[dict]) -> None:
    with (
        atomic_path(RESULTS / name) as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write both tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.export_speed", description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder of larq_predict.py")
    parser.add_argument("--python", help="interpreter with Larq Compute Engine")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--core", type=int, default=0, help="which core")
    args = parser.parse_args(argv)
    require(bool(args.peers) == bool(args.python), "--peers and --python go together")
    os.sched_setaffinity(0, {args.core})
    with tempfile.TemporaryDirectory() as folder:
        rows, size_rows = measure(Path(folder), args.networks, args.peers, args.python)
    write("export_speed.csv", rows)
    write("export_size.csv", size_rows)


if __name__ == "__main__":
    with one_line_errors("python -m tools.export_speed"):
        main()
