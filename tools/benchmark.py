"""How fast are training, packed networks and XNOR products on this machine, beside others?

python -m tools.benchmark                 # a quarter of an hour on two idle cores
python -m tools.benchmark --quick         # fewer repeats: under two minutes
python -m tools.benchmark --peers DIR     # other libraries beside this one, in turns

Each rate is a median, with the lowest and the highest reading beside it. What is compared takes
turns, so that a machine that slows down slows all of it down.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from tabulate import tabulate

from files import require_writable, write_json
from utils import RECIPES, NetworkParams, TrainingParams, one_line_errors, require

PROGRAM = "python -m tools.benchmark"
PARTS = ("training", "matmul", "inference")
RESULTS = Path("results/benchmark")
# Of CIFAR-10.
TRAINING_IMAGES = 50_000
# Words that `popcount_limit` counts for each word that it loads: with 64, starting the call takes a
# tenth of the time.
RESIDENT_WORDS = 256
# The programs in the folder of `--peers` that train or infer with the paper's network, by name:
# the interpreter in that folder, and the arguments. Each prints "… N images/s".
PEERS = {
    "Larq, bfloat16": ("bin/python", "larq_train.py --precision mixed_bfloat16"),
    "Larq, float32": ("bin/python", "larq_train.py --precision float32"),
    "PyTorch, bfloat16": ("torch/bin/python", "torch_train.py --precision bfloat16"),
    "PyTorch, float32": ("torch/bin/python", "torch_train.py --precision float32"),
    # It needs a C++ compiler.
    "PyTorch compiled, bfloat16": (
        "torch/bin/python",
        "torch_train.py --precision bfloat16 --compile",
    ),
    "PyTorch compiled, float32": (
        "torch/bin/python",
        "torch_train.py --precision float32 --compile",
    ),
}
# Each starts its own process.
PEER_TURNS = 5
PEER_SECONDS = 600


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Parameters
    ----------
    repeats : int
        Number of readings of each contender.
    matmuls : sequence of (M, K, N)
        Shapes (M, K) by (K, N).
    in_dim : (height, width, channels)
    network : NetworkParams
    images : sequence of int
        Batch sizes of the inference.
    levels : sequence of {2, 3}
        Levels of the networks that infer.
    batches : sequence of int
        Batch sizes of the training. Whole epochs are measured on the last.
    group : int
        Number of training steps in a reading.
    epoch_images : int
    """

    repeats: int = 9
    matmuls: tuple = ((4096, 1152, 128), (4096, 2304, 256), (4096, 4608, 512))
    in_dim: tuple = (32, 32, 3)
    network: NetworkParams = NetworkParams()
    images: tuple = (100, 1)
    levels: tuple = (2, 3)
    batches: tuple = (50, 100)
    group: int = 4
    epoch_images: int = 2000


FULL = Plan()
QUICK = Plan(repeats=3, images=(100,), levels=(2,), batches=(50,), group=2, epoch_images=150)


# --- Clock ------------------------------------------------------------------------------------


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call()` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(
    contenders: dict[Hashable, Callable[[], object]], repeats: int
) -> dict[Hashable, list[float]]:
    """Time contenders in turns.

    Parameters
    ----------
    contenders : dict of callables
        They return when their work is done.
    repeats : int

    Returns
    -------
    dict of lists
        Seconds of each contender's calls. The first one compiles and stands apart.
    """
    rounds = [{name: timed(call) for name, call in contenders.items()} for _ in range(repeats + 1)]
    return {name: [times[name] for times in rounds] for name in contenders}


def rate(work: float, seconds: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of work over seconds."""
    rates = sorted(work / taken for taken in seconds)
    return {"median": statistics.median(rates), "low": rates[0], "high": rates[-1]}


def in_child(function: Callable, *args: object) -> object:
    """`function(*args)` in a fresh process: its own peak memory, first step, and death.

    Raises
    ------
    concurrent.futures.process.BrokenProcessPool
        If the process died.
    """
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches both processes; this one says what there is to say.
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with concurrent.futures.ProcessPoolExecutor(1, context, **ignore) as pool:
        try:
            return pool.submit(function, *args).result()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise


# --- Matrix products --------------------------------------------------------------------------


def popcount_limit(count: int = 2**20) -> tuple[Callable[[], object], int]:
    """What no matmul on words can exceed: XNOR, popcount and sum of words in registers.

    It is `xnor_matmul`'s loop, compiled by the same compiler for all cores, but every word that is
    loaded meets `RESIDENT_WORDS` others.

    Returns
    -------
    call : callable
        Does it once.
    operations : int
        In a call: a word is 64 multiply-adds, each two operations.
    """
    import numpy as np
    import tensorflow as tf

    from fast import bits, compiled

    words = np.random.default_rng(0).integers(0, 2**64, count + RESIDENT_WORDS, np.uint64)

    @compiled
    def mismatches(loaded, resident):
        return bits.total_popcount(loaded ^ word for word in tf.unstack(resident))

    resident, loaded = (tf.constant(part) for part in np.split(words, [RESIDENT_WORDS]))
    return partial(mismatches, loaded, resident), count * RESIDENT_WORDS * 2 * bits.WORD_BITS


def matmul_rows(plan: Plan) -> list[dict]:
    """Tera-operations/s of `tf.matmul` and `xnor_matmul`, and of `popcount_limit` beside them.

    A multiply-add is two operations. The inputs of `xnor_matmul` are packed, as between the layers
    of a packed network.
    """
    import numpy as np
    import tensorflow as tf

    from fast import bits

    multiply, calls, operations = tf.function(tf.matmul), {}, {}
    for m, k, n in plan.matmuls:
        rng = np.random.default_rng(k)
        a, w = (tf.constant(rng.choice(np.float32([-1, 1]), (size, k))) for size in (m, n))
        packed = bits.pack_bits(a), bits.pack_bits(w)
        shape = f"{m} × {k} × {n}"
        calls[shape, "float32"] = partial(multiply, a, tf.transpose(w))
        calls[shape, "XNOR"] = partial(bits.xnor_matmul, *packed, k)
        operations |= dict.fromkeys([(shape, "float32"), (shape, "XNOR")], 2 * m * k * n)
    calls["popcount", "limit"], operations["popcount", "limit"] = popcount_limit()
    # One number of the result: this waits for a device, and copies next to nothing.
    finished = {key: lambda call=call: call()[:1].numpy() for key, call in calls.items()}
    seconds = in_turns(finished, plan.repeats)
    return [
        {
            "what": f"{kind} {shape}",
            "unit": "tera-operations/s",
            **rate(operations[shape, kind] / 1e12, taken[1:]),
        }
        for (shape, kind), taken in seconds.items()
    ]


# --- Inference --------------------------------------------------------------------------------


def inference_rows(plan: Plan) -> list[dict]:
    """Images/s of float32 `predict` and of the packed network, and the bytes of the weights."""
    import numpy as np

    import bnn

    x = np.random.default_rng(0).integers(0, 256, (max(plan.images), *plan.in_dim), np.uint8)
    rows = []
    for levels in plan.levels:
        params = dataclasses.replace(plan.network, levels=levels, threshold=None)
        network = bnn.BinaryNeuralNetwork(plan.in_dim, 10, params)
        packed = bnn.PackedNetwork.from_network(network)
        with tempfile.TemporaryDirectory() as folder:
            packed.save(Path(folder) / "network.packed")
            packed_bytes = (Path(folder) / "network.packed").stat().st_size
        sizes = {"float32": 4 * network.weight_count, "packed": packed_bytes}
        for batch in plan.images:
            images = x[:batch]
            forwards = {
                "float32": partial(network.predict, images),
                "packed": partial(packed.predict, images),
            }
            equal = np.array_equal(*(forward() for forward in forwards.values()))
            for name, seconds in in_turns(forwards, plan.repeats).items():
                rows.append(
                    {
                        "what": f"{network.network_params.kind} network, {name}",
                        "batch": batch,
                        "unit": "images/s",
                        **rate(batch, seconds[1:]),
                        "equal scores": equal,
                        "bytes of weights": sizes[name],
                    }
                )
    return rows


# --- Training ---------------------------------------------------------------------------------


def training_rates(plan: Plan, precision: str, batch: int) -> dict:
    """Rates, first step and memory of the training at one batch size, as a row.

    Everything runs through Keras' own `fit`. The batch is the same one over and over, as peers are
    measured. A whole epoch comes out of the input pipeline, shuffled.
    """
    import numpy as np
    import tensorflow as tf

    import bnn

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (plan.epoch_images, *plan.in_dim), np.uint8)
    y = rng.integers(0, 10, len(x))
    params = TrainingParams(epochs=1, batch_size=batch, precision=precision)
    network = bnn.BinaryNeuralNetwork(plan.in_dim, 10, plan.network, params)

    def fit(*args, **options):
        clock = _epoch_clock()
        with contextlib.redirect_stdout(io.StringIO()):  # No progress bar.
            network.fit(*args, callbacks=[clock], **options)
        return clock.seconds

    (first_step,) = fit(x[:batch], y[:batch])
    resident, clock = tf.data.Dataset.from_tensors((x[:batch], y[:batch])).repeat(), _epoch_clock()
    network.model.fit(
        resident, epochs=plan.repeats + 1, steps_per_epoch=plan.group, callbacks=[clock], verbose=0
    )
    # In kilobytes, on Linux.
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    products = product_seconds(plan, precision, batch)
    row = {
        "what": f"training, {precision}",
        "batch": batch,
        "unit": "images/s",
        **rate(plan.group * batch, clock.seconds[1:]),
        "framework's products alone": batch / products,
        "first step s": first_step,
        "peak GB": peak / 1e9,
    }
    if batch in plan.batches[-1:]:
        network.training_params = dataclasses.replace(network.training_params, epochs=2)
        # The first epoch traces.
        row["whole epoch"] = len(x) // batch * batch / fit(x, y)[-1]
    return row


def training_rows(plan: Plan) -> list[dict]:
    """`training_rates` for each precision and batch size."""
    rows = []
    for policy in _policies():
        for batch in plan.batches:
            try:
                rows.append(in_child(training_rates, plan, policy, batch))
            except concurrent.futures.process.BrokenProcessPool:
                rows.append({"what": f"training, {policy}: the process died", "batch": batch})
    return rows


def _policies():
    """The precisions that this machine may survive: without bfloat16, TensorFlow may die of it."""
    from fast import precision

    may = precision.gpu_has_bfloat16() or precision.may_have_fast_bfloat16()
    return ["float32", "mixed_bfloat16"] if may else ["float32"]


def _epoch_clock():
    """A Keras callback that keeps the seconds of each epoch."""
    import keras

    class EpochClock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.start)

    return EpochClock()


def product_seconds(plan: Plan, precision: str, batch: int) -> float:
    """Median seconds of a step's products and their gradients in the framework's own kernels.

    This is what a step would take if everything between the products took no time.
    """
    import numpy as np
    import tensorflow as tf

    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    rng, size = np.random.default_rng(0), plan.network.filter_size
    height, width, channels = plan.in_dim
    strides = plan.network.strides

    def signs(*shape):
        return tf.constant(rng.choice(np.float32([-1, 1]), shape), dtype)

    layers = []
    for i, (fan_in, units) in enumerate(plan.network.layer_shapes(plan.in_dim, 10)):
        if i < len(plan.network.conv):
            kernel = signs(size, size, channels, units)
            layers.append([signs(batch, height, width, channels), kernel])
            channels = units
            step = strides[i] * (2 if plan.network.max_pool[i] else 1)
            height, width = -(-height // step), -(-width // step)
        else:
            layers.append([signs(batch, fan_in), signs(fan_in, units)])

    @tf.function
    def products(layers):
        results = []
        for i, (inputs, kernel) in enumerate(layers):
            with tf.GradientTape() as tape:
                tape.watch([inputs, kernel])
                if kernel.shape.rank == 4:
                    out = tf.nn.conv2d(inputs, kernel, strides[i], "SAME")
                else:
                    out = tf.matmul(inputs, kernel)
            # Images have no gradient.
            wanted = [kernel, inputs] if i else [kernel]
            results += [out, *tape.gradient(out, wanted, output_gradients=tf.ones_like(out))]
        return [tf.reshape(result, [-1])[0] for result in results]

    seconds = in_turns({"": lambda: [one.numpy() for one in products(layers)]}, plan.repeats)[""]
    return statistics.median(seconds[1:])


# --- Peers ------------------------------------------------------------------------------------


def peer_rows(plan: Plan, folder: Path) -> list[dict]:
    """Images/s of training with the paper's network, here and in other libraries, in turns."""
    batch = plan.batches[-1]
    found = {
        name: [str(folder / interpreter), *arguments.split(), "--batch_size", str(batch)]
        for name, (interpreter, arguments) in PEERS.items()
        if (folder / interpreter).exists() and (folder / arguments.split()[0]).exists()
    }
    programs = {arguments.split()[0] for _, arguments in PEERS.values()}
    require(found, f"{folder} holds none of {', '.join(sorted(programs))} with its interpreter")
    quick = dataclasses.replace(plan, repeats=3, batches=(), epoch_images=batch)
    contenders = {
        f"here, {policy.removeprefix('mixed_')}": partial(_own_rate, quick, policy, batch)
        for policy in _policies()
    } | {name: partial(_peer_rate, command, folder) for name, command in found.items()}
    readings, failed = {name: [] for name in contenders}, {}
    for _ in range(min(PEER_TURNS, plan.repeats)):
        for name, measure_once in contenders.items():
            if name not in failed:
                try:
                    readings[name].append(measure_once())
                except _ContenderFailed as error:
                    failed[name] = {"what": f"{name}: {error}", "batch": batch}
    return [
        failed.get(name)
        or {"what": name, "batch": batch, "unit": "images/s", **rate(1, [1 / r for r in rates])}
        for name, rates in readings.items()
    ]


class _ContenderFailed(Exception):
    """Why there is no reading; the other contenders go on."""


def _own_rate(plan, policy, batch):
    try:
        return in_child(training_rates, plan, policy, batch)["median"]
    except concurrent.futures.process.BrokenProcessPool:
        raise _ContenderFailed("the process died") from None


def _peer_rate(command, folder):
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": PEER_SECONDS}
    try:
        done = subprocess.run(command, cwd=folder, **options)
    except subprocess.TimeoutExpired:
        raise _ContenderFailed(f"not done after {PEER_SECONDS} seconds") from None
    except OSError as error:
        raise _ContenderFailed(f"cannot start: {error.strerror}") from None
    if done.returncode < 0:
        raise _ContenderFailed("the process died")
    readings = re.findall(r"([\d.]+) images/s", done.stdout)
    if done.returncode or not readings:
        raise _ContenderFailed(f"failed with exit code {done.returncode} and no rate")
    return float(readings[-1])


# --- How long a whole training takes ----------------------------------------------------------


def estimate(recipe: TrainingParams, images: int) -> str:
    """One line on how long the paper's network takes on this machine, from some of its steps.

    Parameters
    ----------
    recipe : TrainingParams
    images : int
        In an epoch.
    """
    from fast.precision import choose_precision

    policy, _ = choose_precision("auto")
    plan = dataclasses.replace(QUICK, batches=(recipe.batch_size,))
    try:
        images_per_s = in_child(training_rates, plan, policy, recipe.batch_size)["whole epoch"]
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(f"cannot estimate: the training in {policy} died") from None
    hours = recipe.epochs * images / images_per_s / 3600
    return (
        f"{recipe.epochs} epochs of {images:,} images at {images_per_s:.0f} images/s: about "
        f"{hours:.1f} hours, and two epochs' time more to measure everything"
    )


# --- Command line -----------------------------------------------------------------------------


def machine() -> dict:
    """What the figures were measured on."""
    from fast import bits, precision

    fields = precision.cpu_fields()
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vpopcntdq", "amx_bf16")
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor()),
        "flags": [flag for flag in known if flag in flags],
        "cores": os.cpu_count(),
        "vector_popcount": bits.VECTOR_POPCOUNT,
        **{name: metadata.version(name) for name in ("tensorflow", "keras")},
    }


def results_file(about: dict) -> Path:
    """One file for each kind of processor."""
    name = f"{about['processor']} {about['flags'][-1] if about['flags'] else ''}"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".json")


def measure(
    plan: Plan, parts: Collection[str], peers: Path | None = None, path: Path | None = None
) -> dict:
    """Measure the parts, print a table of each, and put its rows into the file.

    The rows of the file's other parts stay.

    Parameters
    ----------
    plan : Plan
    parts : collection of str
        Of `PARTS`.
    peers : pathlib.Path, optional
        Folder of other libraries' programs; see `PEERS`.
    path : pathlib.Path, optional
        By default a file for this kind of processor in `RESULTS`.

    Returns
    -------
    dict
        `machine` and `rows`.

    Raises
    ------
    ValueError
        If the file is of another machine, or cannot be written.
    """
    results = {"machine": machine(), "rows": []}
    path = path or results_file(results["machine"])
    # What cannot be written should be known before the work is done.
    path.parent.mkdir(parents=True, exist_ok=True)
    require_writable(path.parent)
    results["rows"] = _kept_rows(path, results["machine"])
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    measures = {"training": training_rows, "matmul": matmul_rows, "inference": inference_rows}
    work = {part: measures[part] for part in PARTS if part in parts}
    if peers is not None:
        work["peers"] = partial(peer_rows, folder=peers)
    for part, rows_of in work.items():
        named = {"part": part, "processor": results["machine"]["processor"]}
        rows = [named | row for row in rows_of(plan)]
        results["rows"] = [row for row in results["rows"] if row["part"] != part] + rows
        print("\n" + format_rows(rows), flush=True)
        write_json(path, results)
    print(f"\n{path}")
    return results


def _kept_rows(path, about):
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same, rows = kept["machine"] == about, kept["rows"]
    except (ValueError, KeyError, TypeError):
        same = False
    require(same, f"{path} is of another machine or other versions: name another file by --json")
    return rows


def format_rows(rows: Sequence[dict]) -> str:
    """Rows of one part as a plain-text table."""
    shown = [
        {name: _cell(value) for name, value in row.items() if name not in ("part", "processor")}
        for row in rows
    ]
    return tabulate(shown, "keys", "plain", disable_numparse=True, missingval="-")


def _cell(value):
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return {True: "yes", False: "NO"}[value] if isinstance(value, bool) else value


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog=PROGRAM, description="Training and inference against the clock.", allow_abbrev=False
    )
    text = "fewer repeats; training at batch 50, inference of the binary network at 100"
    cli.add_argument("--quick", action="store_true", help=text)
    text = "what to measure (default: all)"
    cli.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help=text)
    text = "a folder with larq_train.py, torch_train.py and their interpreters"
    cli.add_argument("--peers", type=Path, metavar="DIR", help=text)
    text = "only tell how long a recipe of run_bnn.py takes for the paper's network on CIFAR-10"
    cli.add_argument("--estimate", choices=tuple(RECIPES), help=text)
    text = f"where the figures go (default: a file for this kind of processor in {RESULTS})"
    cli.add_argument("--json", type=Path, metavar="FILE", help=text)
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    args = parser().parse_args(argv)
    with one_line_errors(PROGRAM):
        if args.estimate:
            print(estimate(RECIPES[args.estimate], TRAINING_IMAGES))
            return
        measure(QUICK if args.quick else FULL, args.parts, args.peers, args.json)


if __name__ == "__main__":
    main()
