"""Batches of images: shuffled and augmented for training, in order for everything else."""

import utils  # noqa: F401 (first: its settings are read when TensorFlow is imported)

# isort: split
import numpy as np
import tensorflow as tf

# Pixels that `--augment crop-flip` shifts an image by at most.
LARGEST_SHIFT = 4


def augmented(
    images: tf.Tensor,
    kind: str,
    seed: tf.Tensor,
    batch_size: int | None = None,
    first: int | tf.Tensor = 0,
) -> tf.Tensor:
    """Images as they might as well have been taken.

    Parameters
    ----------
    images : tensor, shape (n, rows, columns, channels)
        Only n may be unknown.
    kind : {'flip', 'crop-flip'}
        Mirror each image left to right with probability ½; 'crop-flip' also shifts it by up to
        `LARGEST_SHIFT` pixels each way, reflecting what it uncovers.
    seed : tensor of integers, shape (2,)
        Decides it all.
    batch_size, first : int, optional
        Of a larger batch, whose images number `first` and following these are.

    Returns
    -------
    tensor
        Like `images`.
    """
    (rows, columns), count = images.shape[1:3], tf.shape(images)[0]
    drawn, own = batch_size or count, slice(first, first + count)
    mirror_seed, shift_seed = tf.unstack(tf.random.split(seed, 2))
    mirrored = tf.random.stateless_uniform([drawn, 1, 1, 1], mirror_seed)[own] < 0.5
    images = tf.where(mirrored, images[:, :, ::-1], images)
    if kind == "flip":
        return images
    margin = [LARGEST_SHIFT, LARGEST_SHIFT]
    images = tf.pad(images, [[0, 0], margin, margin, [0, 0]], "REFLECT")
    shifts = tf.random.stateless_uniform(
        [2, drawn, 1], shift_seed, 0, 2 * LARGEST_SHIFT + 1, tf.int32
    )[:, own]
    images = tf.gather(images, shifts[0] + tf.range(rows), axis=1, batch_dims=1)
    return tf.gather(images, shifts[1] + tf.range(columns), axis=2, batch_dims=1)


BATCHES_AHEAD = 4


def training_batches(
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int,
    seed: int,
    epochs: int,
    initial_epoch: int = 0,
    augment: str | None = None,
    replicas: int = 1,
    own: range | None = None,
) -> tf.data.Dataset:
    """All batches of a training, epoch after epoch, each epoch in a shuffled order of its own.

    Order and augmentation depend on (seed, epoch) alone, so a training that resumes at
    `initial_epoch` sees what an uninterrupted one would have seen. Images stay as they are (uint8
    on the host).

    Parameters
    ----------
    x : ndarray, shape (n, height, width, channels)
    y : ndarray, shape (n,)
    batch_size : int
        The n mod batch_size images left over in an epoch are not used in it.
    seed : int
    epochs, initial_epoch : int
    augment : str, optional
        As `augmented` takes it.
    replicas : int
        Devices that share each batch equally.
    own : range, optional
        Those that this data set is for, by default all. Of each batch it yields their shares one
        after another.

    Returns
    -------
    tf.data.Dataset
        Of (epochs − initial_epoch)·(n // batch_size)·len(own) pairs.
    """
    share, own = batch_size // replicas, own or range(replicas)
    images, labels = tf.constant(x), tf.constant(y)

    def batches_of(epoch):
        epoch_seed = tf.stack([tf.cast(seed, tf.int64), epoch])

        def share_of(index, chosen):
            part = tf.gather(images, chosen)
            if augment:
                step_seed = tf.random.fold_in(epoch_seed, index // len(own))
                first = share * (own.start + tf.cast(index % len(own), tf.int32))
                part = augmented(part, augment, step_seed, batch_size, first)
            return part, tf.gather(labels, chosen)

        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), seed=epoch_seed)
        batches = tf.reshape(order[: len(x) // batch_size * batch_size], [-1, replicas, share])
        shares = tf.reshape(batches[:, own.start : own.stop], [-1, share])
        shares = tf.data.Dataset.from_tensor_slices(shares)
        return shares.enumerate().map(share_of, num_parallel_calls=2)

    epochs_left = tf.data.Dataset.range(initial_epoch, epochs)
    return _untuned(epochs_left.flat_map(batches_of).prefetch(BATCHES_AHEAD))


def batches_in_order(*arrays: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """The arrays (images, or images and labels) from first to last, as Keras infers and validates.

    Parameters
    ----------
    arrays : ndarrays, shape (n, ...)
    batch_size : int

    Returns
    -------
    tf.data.Dataset
        Of ceil(n / batch_size) batches, the last of which may be smaller.
    """
    rows = arrays if len(arrays) > 1 else arrays[0]
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    return _untuned(batches.prefetch(BATCHES_AHEAD))


def _untuned(batches):
    # The tuner of tf.data sleeps twice as long every time, up to a minute, and whoever is done
    # with the batches waits until it wakes: 700 images took 10.3 s to classify in place of 6.4.
    options = tf.data.Options()
    options.autotune.enabled = False
    # Each worker takes its share of the rows; there are no files to share.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)
