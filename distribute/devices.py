"""Training on several devices: GPUs of one machine, or the workers of a cluster."""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import utils  # First: its settings are read when TensorFlow is imported.
from distribute.cluster import Cluster

# isort: split
import numpy as np
import tensorflow as tf


class _Workers(tf.distribute.MultiWorkerMirroredStrategy):
    """The framework's strategy for several machines, as `fit` of Keras 3.15.1 needs it."""

    def __init__(self, cluster, gpus):
        self.cluster = cluster
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": cluster.addresses}),
            task_type="worker",
            task_id=cluster.index,
            num_accelerators={"GPU": gpus},
            rpc_layer="grpc",
        )
        super().__init__(resolver)

    def reduce(self, reduce_op, value, axis=None):
        if isinstance(value, tuple):
            # The first batch, of which Keras wants the shapes.
            return tuple(self.experimental_local_results(part)[0] for part in value)
        if axis == 0 and self.experimental_local_results(value)[0].shape.rank == 0:
            axis = None  # A metric, which has no axis.
        return super().reduce(reduce_op, value, axis)


def training_strategy(
    cluster: Cluster | None = None, batch_size: int = 0
) -> tuple[tf.distribute.Strategy | None, str]:
    """What to train on: all workers of a cluster, else all GPUs of this machine, else one device.

    Must come before anything is computed.

    Parameters
    ----------
    cluster : cluster.Cluster, optional
    batch_size : int
        Of all devices together.

    Returns
    -------
    strategy : tf.distribute.Strategy or None
        None for one device.
    what : str

    Raises
    ------
    ValueError
        If the batch does not divide by the devices, or a worker does not come.
    """
    workers = len(cluster.addresses) if cluster else 1
    gpus = len(tf.config.list_physical_devices("GPU"))
    require_shares(batch_size, workers * max(gpus, 1))
    if cluster:
        cluster.meet()
        each = f", {gpus} GPUs each" if gpus else ""
        what = f"{workers} workers{each}; this is {cluster.name(cluster.index)}"
        return _Workers(cluster, gpus), what
    if gpus > 1:
        return tf.distribute.MirroredStrategy(), f"{gpus} GPUs of this machine, mirrored"
    return None, "one GPU" if gpus else "one device, the processor"


def require_shares(batch_size: int, replicas: int) -> None:
    """Raise ValueError unless all replicas get equal shares of a batch."""
    utils.require(
        batch_size % replicas == 0,
        f"batch_size {batch_size} does not divide by {replicas} devices, which would share it",
    )


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Is this the process that reads and writes files and talks?"""
    return not isinstance(strategy, _Workers) or strategy.cluster.is_chief


def from_chief(
    strategy: tf.distribute.Strategy | None, value: np.ndarray | int
) -> np.ndarray | int:
    """The chief's array or number on every worker; elsewhere only its shape and type count."""
    if not isinstance(strategy, _Workers):
        return value
    value = np.asarray(value)
    own = tf.identity(value if is_chief(strategy) else np.zeros_like(value))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, own).numpy()


def on_chief(
    strategy: tf.distribute.Strategy | None, function: Callable, *arguments: object
) -> Any:
    """Call the function on the chief alone, and return its result, or raise its error, on all.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
    function : callable
        Returns what JSON can hold.

    Raises
    ------
    ValueError
        On all workers where the function raised ValueError or OSError.
    """
    if not isinstance(strategy, _Workers):
        return function(*arguments)
    answer = b""
    if is_chief(strategy):
        try:
            answer = json.dumps([function(*arguments), None]).encode()
        except (ValueError, OSError) as error:
            answer = json.dumps([None, str(error)]).encode()
    with lost_workers_named(strategy):
        length = int(from_chief(strategy, len(answer)))
        answer = np.frombuffer(answer.ljust(length), np.uint8).astype(np.int32)
        answer = from_chief(strategy, answer).astype(np.uint8).tobytes()
    value, error = json.loads(answer)
    utils.require(error is None, error)
    return value


@contextlib.contextmanager
def lost_workers_named(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Turn the framework's errors after the loss of a worker into a ConnectionError of one line."""
    cluster = getattr(strategy, "cluster", None)
    try:
        yield
    except tf.errors.OpError as error:
        lost = cluster.lost(str(error)) if cluster else []
        gone = isinstance(error, tf.errors.UnavailableError | tf.errors.DeadlineExceededError)
        if not cluster or not (lost or gone):
            raise
        who = ", ".join(map(cluster.name, lost)) or "a worker"
        raise ConnectionError(
            f"{who} stopped answering: the same command with --resume, on every machine, goes on "
            "from the last finished epoch"
        ) from None


def distributed(
    strategy: tf.distribute.Strategy | None, batches: Callable[..., tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """A data set as `fit` takes it on `strategy`.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
    batches : callable
        `training_batches` but for its arguments `replicas` and `own`.
    """
    if strategy is None:
        return batches()

    def of_worker(context):
        replicas = context.num_replicas_in_sync
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local
        return batches(replicas=replicas, own=range(first, first + local))

    return strategy.distribute_datasets_from_function(of_worker)


def seconds_to_sum(
    strategy: tf.distribute.Strategy, shapes: Sequence[tuple[int, ...]], repeats: int = 5
) -> float:
    """Median time in which the workers sum float32 tensors of these shapes."""
    tensors = [tf.zeros(shape) for shape in shapes]

    @tf.function
    def step():
        def of_replica():
            replica = tf.distribute.get_replica_context()
            sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, tensors)
            return tf.add_n([tf.reduce_sum(total) for total in sums])

        return strategy.run(of_replica)

    def once():
        start = time.perf_counter()
        strategy.experimental_local_results(step())[0].numpy()
        return time.perf_counter() - start

    once()  # Traces.
    return statistics.median(once() for _ in range(repeats))
