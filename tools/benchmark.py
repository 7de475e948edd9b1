"""How fast are training, XNOR matmul and the packed network on this machine?

python -m tools.benchmark            # everything: a quarter of an hour on two cores
python -m tools.benchmark --quick    # fewer repeats: under two minutes on two idle cores

All rates are medians. What is compared takes turns in one process, so that a machine that slows
down slows all of it down.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from tabulate import tabulate

from utils import RECIPES, NetworkParams, TrainingParams, one_line_errors, write_json

PROGRAM = "python -m tools.benchmark"
PARTS = ("training", "matmul", "inference")
# bfloat16 that runs at less than this share of float32's speed is not worth the wait.
SLOWEST_BFLOAT16 = 0.2
# Words that `resident_popcounts` counts for each word that it loads.
RESIDENT_WORDS = 64
# Of CIFAR-10.
TRAINING_IMAGES = 50_000


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Parameters
    ----------
    repeats : int
        Times that each contender is timed.
    matmuls : sequence of (M, K, N)
        (M, K) by (K, N).
    in_dim : (height, width, channels)
    network : NetworkParams
    images : sequence of int
        Batch sizes of the inference.
    levels : sequence of {2, 3}
        Of the networks that infer.
    batches : sequence of int
        Batch sizes of the training. Whole epochs are measured on the last.
    group : int
        Training steps between two readings of the clock.
    epoch_images : int
        In an epoch.
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


def timed(call):
    """Seconds that `call()` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(contenders, repeats):
    """Time contenders in turn.

    Parameters
    ----------
    contenders : dict of callables
        They return when their work is done.
    repeats : int

    Returns
    -------
    dict
        For each (first, median, best): seconds of the first call, which compiles, and of the
        later ones.
    """
    first = {name: timed(call) for name, call in contenders.items()}
    rounds = [{name: timed(call) for name, call in contenders.items()} for _ in range(repeats)]
    return {
        name: (first[name], statistics.median(later), min(later))
        for name in contenders
        for later in [[times[name] for times in rounds]]
    }


def in_child(function, *args):
    """`function(*args)` in a fresh process: its own peak memory, first step, and death.

    Raises
    ------
    concurrent.futures.process.BrokenProcessPool
        If the process died.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def why_no_bfloat16():
    """The reason not to measure bfloat16 on this machine, or None."""
    from fast import precision

    if precision.gpu_has_bfloat16():
        return None
    speedup = precision.bfloat16_speedup()
    if not speedup:
        return "bfloat16 kills TensorFlow on this machine"
    if speedup < SLOWEST_BFLOAT16:
        return f"bfloat16 runs at {speedup:.2f} × the speed of float32"
    return None


# --- XNOR matmul ------------------------------------------------------------------------------


def resident_popcounts(count=2**20):
    """What no matmul on words can exceed: XNOR, popcount and sum of words in registers.

    `xnor_matmul`'s loop, compiled by the same compiler for all cores, but every word that is
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


def matmul_rates(plan, obstacle=None):
    """Tera-operations/s of `xnor_matmul` and `tf.matmul`, a dict for each shape of the plan.

    A multiply-add is two operations; `limit` is that of `resident_popcounts`. Weights and
    activations are packed already, as between the layers of a packed network.
    """
    import numpy as np
    import tensorflow as tf

    from fast import bits

    multiply, rows = tf.function(tf.matmul), []
    for m, k, n in plan.matmuls:
        rng = np.random.default_rng(k)
        a, w = (tf.constant(rng.choice(np.float32([-1, 1]), (size, k))) for size in (m, n))
        operations, contenders = 2 * m * k * n, {}
        for dtype in ("float32", *([] if obstacle else ["bfloat16"])):
            factors = tf.cast(a, dtype), tf.cast(tf.transpose(w), dtype)
            contenders[dtype] = partial(multiply, *factors), operations
        packed = bits.pack_bits(a), bits.pack_bits(w)
        contenders["xnor"] = partial(bits.xnor_matmul, *packed, k), operations
        contenders["limit"] = resident_popcounts()
        times = interleaved(
            {name: partial(_finish, call) for name, (call, _) in contenders.items()}, plan.repeats
        )
        seconds = {name: median for name, (_, median, _) in times.items()}
        seconds["limit"] = times["limit"][-1]  # What is exceeded now and then is no limit.
        rates = {name: contenders[name][1] / taken / 1e12 for name, taken in seconds.items()}
        rows.append({"shape": [m, k, n], **rates})
    return rows


def _finish(call):
    # One number of the result: waits for a device, copies next to nothing.
    call()[:1].numpy()


# --- Inference --------------------------------------------------------------------------------


def bfloat16_forward(network):
    """The forward pass of `network` with its products in bfloat16, as a function of images."""
    import keras
    import tensorflow as tf

    import bnn
    import walk

    training = dataclasses.replace(network.training_params, precision="mixed_bfloat16")
    twin = bnn.BinaryNeuralNetwork(
        network.in_dim, network.out_dim, network.network_params, training
    )
    twin.model.set_weights(network.model.get_weights())
    graph = walk.graph_of(twin.model)

    @tf.function
    def forward(x):
        tensors = dict(zip(graph.inputs, [x], strict=True))
        for step in graph.steps:
            if walk.forms_product(step.layer):
                step.run(tensors, training=True)  # In bfloat16.
                continue
            if step.layer in twin.norms:
                for number in step.reads:
                    tensors[number] = tf.cast(tensors[number], tf.float32)
            step.run(tensors)
        (scores,) = graph.outputs
        return tensors[scores]

    return lambda x: keras.ops.convert_to_numpy(forward(tf.constant(x)))


def inference_rates(plan, obstacle=None):
    """Images/s of float32 `predict`, bfloat16 and the packed network, and the weights' bytes."""
    import numpy as np

    import bnn

    x = np.random.default_rng(0).integers(0, 256, (max(plan.images), *plan.in_dim), np.uint8)
    rows = []
    for levels in plan.levels:
        network = bnn.BinaryNeuralNetwork(
            plan.in_dim, 10, dataclasses.replace(plan.network, levels=levels, threshold=None)
        )
        packed = bnn.PackedNetwork.from_network(network)
        with tempfile.TemporaryDirectory() as folder:
            packed.save(Path(folder) / "network.packed")
            packed_bytes = (Path(folder) / "network.packed").stat().st_size
        forwards = {"float32": network.predict, "packed": packed.predict}
        if not obstacle:
            forwards["bfloat16"] = bfloat16_forward(network)
        for batch in plan.images:
            images = x[:batch]
            times = interleaved(
                {name: partial(forward, images) for name, forward in forwards.items()},
                plan.repeats,
            )
            rows.append(
                {
                    "kind": network.network_params.kind,
                    "batch": batch,
                    "images_per_s": {
                        name: batch / median for name, (_, median, _) in times.items()
                    },
                    "first_call_s": {name: first for name, (first, *_) in times.items()},
                    "equal": np.array_equal(network.predict(images), packed.predict(images)),
                    "float32_bytes": 4 * network.weight_count,
                    "packed_bytes": packed_bytes,
                }
            )
    return rows


# --- Training ---------------------------------------------------------------------------------


def training_rates(plan, precision, batch):
    """Rates, memory and time by kind of operation of the training at one batch size.

    Everything runs through Keras' own `fit`. The resident batch is one batch over and over, as
    peers are measured; a whole epoch comes out of the input pipeline, shuffled.

    Returns
    -------
    dict
        `convolutions_images_per_s` is what the forward pass and both gradients of the network's
        convolutions and matmuls alone would allow, in the framework's own kernels, in the same
        dtype and process. `by_kind` has milliseconds of a step by kind of operation, as the
        profiler sees them: operations overlap, so the sum may exceed the step.
    """
    import numpy as np
    import tensorflow as tf

    import bnn

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (plan.epoch_images, *plan.in_dim), np.uint8)
    y = rng.integers(0, 10, len(x))
    network = bnn.BinaryNeuralNetwork(
        plan.in_dim,
        10,
        plan.network,
        TrainingParams(epochs=1, batch_size=batch, precision=precision),
    )

    def fit(*args, **options):
        with contextlib.redirect_stdout(io.StringIO()):  # No progress bar.
            network.fit(*args, **options)

    clock = _epoch_clock()
    fit(x[:batch], y[:batch], callbacks=[clock])
    (first_step,) = clock.seconds

    resident = tf.data.Dataset.from_tensors((x[:batch], y[:batch])).repeat()

    def steps(groups):
        clock = _epoch_clock()
        options = {"steps_per_epoch": plan.group, "shuffle": False, "verbose": 0}
        network.model.fit(resident, epochs=groups, callbacks=[clock], **options)
        return [plan.group * batch / seconds for seconds in clock.seconds]

    rate = statistics.median(steps(plan.repeats + 1)[1:])
    row = {
        "precision": precision,
        "batch": batch,
        "images_per_s": rate,
        "first_step_s": first_step,
        # In kilobytes, on Linux.
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "convolutions_images_per_s": batch / convolution_seconds(plan, precision, batch),
        "by_kind": {kind: 1e3 * s / plan.group for kind, s in by_kind(lambda: steps(1)).items()},
    }
    if batch == plan.batches[-1]:
        clock = _epoch_clock()
        network.training_params = dataclasses.replace(network.training_params, epochs=2)
        fit(x, y, callbacks=[clock])
        # The first one traces.
        row["epoch_images_per_s"] = len(x) // batch * batch / clock.seconds[-1]
    return row


def all_training_rates(plan, obstacle=None):
    """`training_rates` for each precision and batch size; `obstacle` is one to bfloat16."""
    from fast import precision

    if precision.bfloat16_signs() == "none" and not precision.gpu_has_bfloat16():
        # Forward it keeps up with float32, but the fallback for gradients takes minutes a step.
        obstacle = obstacle or "the processor has no fast bfloat16"
    rows = []
    for policy in ("float32", "mixed_bfloat16"):
        for batch in plan.batches:
            row = {"precision": policy, "batch": batch, "skipped": obstacle}
            if policy == "float32" or not obstacle:
                try:
                    row = in_child(training_rates, plan, policy, batch)
                except concurrent.futures.process.BrokenProcessPool:
                    row["skipped"] = "the process that measured it died"
            rows.append(row)
    return rows


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


def convolution_seconds(plan, precision, batch):
    """Median seconds of all forward products and their gradients, without anything between them."""
    import tensorflow as tf

    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    shapes = plan.network.layer_shapes(plan.in_dim, 10)
    size, (height, width, channels) = plan.network.filter_size, plan.in_dim
    strides, layers = plan.network.strides, []
    for i, (fan_in, units) in enumerate(shapes):
        convolutional = i < len(plan.network.conv)
        kernel = (size, size, channels, units) if convolutional else (fan_in, units)
        inputs = (batch, height, width, channels) if convolutional else (batch, fan_in)
        layers.append([_signs(inputs, dtype), _signs(kernel, dtype)])
        channels = units
        if convolutional:
            step = strides[i] * (2 if plan.network.max_pool[i] else 1)
            height, width = -(-height // step), -(-width // step)

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

    def run():
        for result in products(layers):
            result.numpy()

    return interleaved({"products": run}, plan.repeats)["products"][1]


def _signs(shape, dtype):
    import numpy as np
    import tensorflow as tf

    return tf.constant(np.random.default_rng(0).choice(np.float32([-1, 1]), shape), dtype)


# What an operation's name in the profiler tells of its kind; the first that fits.
KINDS = {
    "backward convolution": ("Conv2DBackprop", "winograd"),
    "forward convolution": ("Conv2D", "counted_conv2d"),
    "optimizer": ("latent_adam", "Adam"),
    "batch norm": ("BatchNorm", "_norm"),
    "matmul": ("MatMul",),
    "pooling": ("MaxPool",),
}


def kind_of(name):
    """Kind of operation by its name; element-wise unless the name tells otherwise."""
    for kind, marks in KINDS.items():
        if any(mark in name for mark in marks):
            return kind
    return "element-wise and other"


def by_kind(run):
    """Seconds by kind of operation while `run()` runs, from TensorFlow's profiler."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    seconds = dict.fromkeys([*KINDS, "element-wise and other"], 0.0)
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = _operation(plane, event)
            if name:
                seconds[kind_of(name)] += event.duration_ps / 1e12
    return seconds


def _operation(plane, event):
    """Name of the operation that an event of the profiler is about, or None."""
    for stat in event.stats:
        # A piece of a function that XLA compiled; the module has the function's name.
        if plane.stat_metadata[stat.metadata_id].name == "hlo_module":
            return stat.str_value or plane.stat_metadata[stat.ref_value].name
    name = plane.event_metadata[event.metadata_id].name
    # The executor writes node:Operation.
    node, _, operation = name.rpartition(":")
    executed = node and not node.endswith(":") and operation.lstrip("_").isalnum()
    return name if executed else None


# --- Tables -----------------------------------------------------------------------------------


def table(header, rows):
    """Columns side by side, the first one flush left."""
    cells = [[_cell(value) for value in row] for row in rows]
    options = {"stralign": "right", "colalign": ("left",), "disable_numparse": True}
    return tabulate(cells, header, "plain", **options)


def _cell(value):
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def format_matmul(rows):
    names = ("float32", "bfloat16", "xnor", "limit")
    lines = [
        [
            "×".join(map(str, row["shape"])),
            *(row.get(name) for name in names),
            row["xnor"] / row["float32"],
        ]
        for row in rows
    ]
    header = ["matmul M×K×N, TOPS", *names[:3], "popcount limit", "xnor/float32"]
    return table(header, lines)


def format_inference(rows):
    lines = []
    for row in rows:
        rates = row["images_per_s"]
        lines.append(
            [
                f"{row['kind']}, batch {row['batch']}",
                *(rates.get(name) for name in ("float32", "bfloat16", "packed")),
                rates["packed"] / rates["float32"],
                1e3 * row["batch"] / rates["packed"],
                row["first_call_s"]["packed"],
                "yes" if row["equal"] else "NO",
                f"{row['float32_bytes']} → {row['packed_bytes']}",
            ]
        )
    header = ["inference, images/s", "float32", "bfloat16", "packed", "packed/float32"]
    return table([*header, "packed ms", "first call s", "equal", "bytes of weights"], lines)


def format_training(rows):
    done = [row for row in rows if "skipped" not in row]
    lines = [
        [
            _training_name(row),
            row["images_per_s"],
            row["images_per_s"] / row["convolutions_images_per_s"],
            row.get("epoch_images_per_s"),
            row["first_step_s"],
            row["peak_bytes"] / 1e9,
        ]
        for row in done
    ]
    header = ["training", "images/s", "of products alone", "whole epoch", "first step s", "peak GB"]
    tables = []
    if done:
        kinds = [[kind, *(row["by_kind"][kind] for row in done)] for kind in done[0]["by_kind"]]
        step = ["ms of a step", *map(_training_name, done)]
        tables = [table(header, lines), table(step, kinds)]
    skipped = [
        f"{_training_name(row)}: not measured, {row['skipped']}" for row in rows if "skipped" in row
    ]
    return "\n\n".join([*tables, *skipped])


def _training_name(row):
    return f"{row['precision']}, batch {row['batch']}"


# --- How long a whole training takes ----------------------------------------------------------


def estimate(recipe, images):
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
    rate = in_child(training_rates, plan, policy, recipe.batch_size)["epoch_images_per_s"]
    hours = recipe.epochs * images / rate / 3600
    return (
        f"{recipe.epochs} epochs of {images:,} images at {rate:.0f} images/s: about {hours:.1f} "
        f"hours, and two epochs' time more to measure everything"
    )


# --- Command line -----------------------------------------------------------------------------


def machine():
    """What the figures were measured on."""
    from fast import bits

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "vector_popcount": bits.VECTOR_POPCOUNT,
        **{name: metadata.version(name) for name in ("tensorflow", "keras")},
    }


def measure(plan, parts, path):
    """Measure the parts, print a table for each, and keep `path` up to date."""
    results = {"machine": machine(), "plan": dataclasses.asdict(plan)}
    # Now already: what cannot be written should be known before the work is done.
    write_json(path, results)
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    obstacle = why_no_bfloat16()
    if obstacle:
        print(f"without bfloat16: {obstacle}")
    for part, rates, format_part in (
        ("training", all_training_rates, format_training),
        ("matmul", matmul_rates, format_matmul),
        ("inference", inference_rates, format_inference),
    ):
        if part in parts:
            results[part] = rates(plan, obstacle)
            print("\n" + format_part(results[part]), flush=True)
            write_json(path, results)
    print(f"\n{path}")
    return results


def parser():
    cli = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__.splitlines()[0], allow_abbrev=False
    )
    cli.add_argument(
        "--quick",
        action="store_true",
        help="fewer repeats; training at batch 50, inference of the binary network at 100",
    )
    cli.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)"
    )
    text = "only tell how long a recipe of run_bnn.py takes for the paper's network on CIFAR-10"
    cli.add_argument("--estimate", choices=tuple(RECIPES), help=text)
    cli.add_argument(
        "--json",
        type=Path,
        default=Path("output/benchmark.json"),
        metavar="FILE",
        help="where the figures go (default: %(default)s)",
    )
    return cli


def main(argv=None):
    """Run the command line `argv` (default: the process's own); bad input ends with exit code 2."""
    args = parser().parse_args(argv)
    with one_line_errors(PROGRAM):
        if args.estimate:
            print(estimate(RECIPES[args.estimate], TRAINING_IMAGES))
            return
        measure(QUICK if args.quick else FULL, args.parts, args.json)


if __name__ == "__main__":
    main()
