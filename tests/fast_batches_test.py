"""Order and augmentation of training batches."""

import numpy as np
import pytest

from fast.batches import LARGEST_SHIFT, augmented, batches_in_order, training_batches


def batches(**options):
    x = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    pairs = training_batches(x, np.arange(10), 3, **options).as_numpy_iterator()
    return [(images.ravel().tolist(), labels.tolist()) for images, labels in pairs]


def test_every_epoch_is_a_permutation_of_its_own():
    got = batches(seed=1, epochs=4)
    assert len(got) == 4 * (10 // 3)
    assert all(images == labels for images, labels in got)
    epochs = np.reshape([images for images, _ in got], (4, 9)).tolist()
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_seed_and_epoch_alone():
    assert batches(seed=1, epochs=4) == batches(seed=1, epochs=4)
    assert batches(seed=1, epochs=4)[6:] == batches(seed=1, epochs=4, initial_epoch=2)
    assert batches(seed=1, epochs=4) != batches(seed=2, epochs=4)


def shifted(image, down, right):
    margin = LARGEST_SHIFT
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    return padded[down : down + image.shape[0], right : right + image.shape[1]]


@pytest.mark.parametrize("kind, variants", [("flip", 2), ("crop-flip", 2 * 9 * 9)])
def test_augmented_images_are_mirrored_or_shifted_and_every_way_occurs(kind, variants):
    image = np.random.default_rng(0).integers(0, 256, (12, 11, 3)).astype(np.uint8)
    expected = [image, image[:, ::-1]]
    if kind == "crop-flip":
        expected = [shifted(v, i, j) for v in expected for i in range(9) for j in range(9)]
    place = {variant.tobytes(): index for index, variant in enumerate(expected)}
    assert len(place) == variants
    many = augmented(np.repeat(image[None], 3000, 0), kind, [1, 2]).numpy()
    counts = np.bincount([place[one.tobytes()] for one in many], minlength=variants)
    # Uniform: chi squared of `variants` cells, five standard deviations above its mean.
    mean = len(many) / variants
    degrees = variants - 1
    assert np.sum((counts - mean) ** 2 / mean) < degrees + 5 * np.sqrt(2 * degrees)


def test_augmentation_is_the_same_after_a_resume_and_another_in_every_epoch():
    x = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    options = {"batch_size": 5, "seed": 3, "epochs": 3, "augment": "crop-flip"}
    labels = np.arange(20)
    whole = [b for b, _ in training_batches(x, labels, **options).as_numpy_iterator()]
    resumed = training_batches(x, labels, **options, initial_epoch=2)
    for (batch, _), expected in zip(resumed.as_numpy_iterator(), whole[8:], strict=True):
        np.testing.assert_array_equal(batch, expected)
    epochs = [np.sort(np.concatenate(whole[i : i + 4]).sum((1, 2, 3))) for i in (0, 4, 8)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("replicas", [1, 2])
def test_devices_share_each_batch(replicas):
    x, y = np.arange(24, dtype=np.uint8).reshape(12, 2, 1, 1), np.arange(12)
    options = {"batch_size": 4, "seed": 3, "epochs": 2, "augment": "flip"}
    whole = [b.tolist() for b, _ in training_batches(x, y, **options).as_numpy_iterator()]
    shares = [
        list(training_batches(x, y, **options, replicas=replicas, own=range(i, i + 1)))
        for i in range(replicas)
    ]
    joined = [
        np.concatenate([images for images, _ in parts]).tolist()
        for parts in zip(*shares, strict=True)
    ]
    assert joined == whole


def test_batches_in_order_hold_everything_once():
    x, y = np.arange(10), np.arange(10) ** 2
    pairs = list(batches_in_order(x, y, batch_size=4).as_numpy_iterator())
    assert [len(images) for images, _ in pairs] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in pairs]), x)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in pairs]), y)
    (alone,) = batches_in_order(x, batch_size=16).as_numpy_iterator()
    np.testing.assert_array_equal(alone, x)
