"""Attacks stay within ε and say the truth; training on attacked images resumes exactly."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from example_networks import random_images, small_network, trained

import adversarial
import attack
import graph_ops
import training
import walk
from bnn import BinaryNeuralNetwork, NetworkParams, PackedNetwork, TrainingParams
from utils import radius_of

ATTACKED = {"adversarial": 0.1, "threshold_penalty": 1e-3}


@pytest.mark.parametrize(
    ("epsilon", "radius"), [(0, 0), (0.1, 25), (0.3, 76), (2 / 255, 2), (8 / 255, 8), (1, 255)]
)
def test_epsilon_is_a_whole_number_of_grey_levels(epsilon, radius):
    assert radius_of(epsilon) == radius


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a number from 0 to 1"):
        radius_of(epsilon)


# --- Gradient ascent --------------------------------------------------------------------------


def attacked(network, x, y, radius=30, steps=5, seed=(0, 0)):
    model = walk.taking_floats(network.model)
    found = adversarial.attacked(model, tf.constant(x), y, float(radius), steps, tf.constant(seed))
    return found.numpy()


def cross_entropy(network, x, y):
    scores = network.predict(x).astype(np.float64)
    return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]


def test_gradient_ascent_raises_the_loss_within_its_limits():
    network, x, y = trained()
    found = attacked(network, x, y)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - x).max() == 30
    assert cross_entropy(network, found, y).mean() > cross_entropy(network, x, y).mean() + 0.1


def test_an_attack_follows_from_its_seed():
    network, x, y = trained()
    np.testing.assert_array_equal(attacked(network, x, y), attacked(network, x, y))
    assert (attacked(network, x, y) != attacked(network, x, y, seed=(0, 1))).any()
    np.testing.assert_array_equal(attacked(network, x, y, radius=0), x)


# --- Attacks on a finished network ------------------------------------------------------------


def test_what_is_found_fools_the_network_and_its_packed_form():
    network, x, y = trained()
    images, fooled = adversarial.fool(network.model, x, y, 0.2, steps=10, searches=50)
    assert np.abs(images.astype(int) - x).max() <= 51
    assert fooled.sum() > (network.classify(x) != y).sum()
    for found in (network, PackedNetwork.from_network(network)):
        np.testing.assert_array_equal(found.classify(images) != y, fooled)
    wrong = network.classify(x) != y
    np.testing.assert_array_equal(images[wrong], x[wrong])


@pytest.mark.parametrize(("steps", "searches"), [(0, 300), (20, 0), (20, 300)])
def test_no_attack_fools_where_no_image_does(steps, searches):
    """All images within ε of one, as far as they differ: each pixel is black or white."""
    params = NetworkParams(conv=[], max_pool=[], fc=[6], input_levels=2)
    network = BinaryNeuralNetwork((2, 3, 1), 3, params, TrainingParams(seed=1))
    x = np.random.default_rng(0).integers(0, 256, (40, 2, 3, 1)).astype(np.uint8)
    y = network.classify(x)
    low, high = np.maximum(x.astype(int) - 51, 0), np.minimum(x.astype(int) + 51, 255)
    can_be_fooled = np.zeros(len(x), bool)
    for ends in itertools.product([False, True], repeat=6):
        corner = np.where(np.reshape(ends, (2, 3, 1)), high, low).astype(np.uint8)
        can_be_fooled |= network.classify(corner) != y
    images, fooled = adversarial.fool(network.model, x, y, 0.2, steps, searches)
    assert not (fooled & ~can_be_fooled).any()
    np.testing.assert_array_equal(network.classify(images) != y, fooled)
    if searches:
        assert fooled.sum() >= 0.9 * can_be_fooled.sum()


def test_nothing_is_fooled_within_zero():
    network, x, _ = trained()
    images, fooled = adversarial.fool(network.model, x, network.classify(x), 0.0, 5, 5)
    assert not fooled.any()
    np.testing.assert_array_equal(images, x)


def test_a_tie_is_won_by_the_lower_label():
    class Flat(tf.Module):
        def __call__(self, images, training=False):
            return tf.ones([tf.shape(images)[0], 3])

    lead = adversarial.leads(Flat(), np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 2]))
    np.testing.assert_array_equal(lead > 0, [True, False, False])


# --- Training ---------------------------------------------------------------------------------


def test_attacks_grow_until_half_of_the_epochs_are_done():
    params = TrainingParams(epochs=8, adversarial=0.1)
    found = [training.attack_of_epoch(epoch, params) for epoch in range(8)]
    assert [float(radius) for radius, _ in found] == [6, 12, 19, 25, 25, 25, 25, 25]
    assert [int(steps) for _, steps in found] == [3, 5, 8, 10, 10, 10, 10, 10]


def test_training_sees_attacked_images():
    x, y = random_images(8)
    options = {"batch_size": 8, "epochs": 1}
    plain, hard = small_network(options), small_network(options | {"adversarial": 0.3})
    assert plain.fit(x, y).history["loss"] < hard.fit(x, y).history["loss"]
    # A later training without attacks has none.
    assert "train_step" not in vars(hard.model)


def test_a_resumed_training_is_that_which_was_never_interrupted(tmp_path):
    x, y = random_images()
    whole = small_network({"epochs": 4, **ATTACKED}).fit(x, y)
    state = tmp_path / "state.keras"

    class Stop(training.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_network({"epochs": 4, **ATTACKED}).fit(x, y, callbacks=[Stop()], state=state)
    resumed = small_network({"epochs": 4, **ATTACKED}).fit(x, y, state=state)
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="other parameters"):
        changed = small_network({"epochs": 4, **ATTACKED, "adversarial": 0.2})
        changed.fit(x, y, callbacks=[Stop()], state=_state(tmp_path, x, y))


def _state(folder, x, y):
    network = small_network({"epochs": 4, **ATTACKED})
    network.fit(x, y, state=folder / "other.keras")
    return folder / "other.keras"


def test_float_images_are_refused():
    x, y = random_images(8, np.float32)
    with pytest.raises(ValueError, match="adversarial training takes uint8 images"):
        small_network({"adversarial": 0.1}).fit(x, y)


# --- Thresholds -------------------------------------------------------------------------------


def test_the_penalty_is_the_sum_of_positive_thresholds():
    norm = graph_ops.ShiftBatchNormalization(threshold_penalty=0.5)
    norm.build((None, 4))
    mean, variance, beta = (
        np.float32([3, -3, 2, 1]),
        np.float32([4, 4, 1, 9]),
        np.float32([1, 1, -2, 0.5]),
    )
    for variable, value in zip(
        (norm.moving_mean, norm.moving_variance, norm.beta), (mean, variance, beta), strict=True
    ):
        variable.assign(value)
    with tf.GradientTape() as tape:
        (loss,) = norm.losses
    deviation = np.sqrt(variance + graph_ops.BN_EPSILON)
    thresholds = mean - beta * deviation
    np.testing.assert_allclose(loss, 0.5 * np.maximum(thresholds, 0).sum(), rtol=1e-6)
    gradient = tape.gradient(loss, norm.beta.value)
    np.testing.assert_allclose(gradient, -0.5 * deviation * (thresholds > 0), rtol=1e-6)
    # The threshold is where the sign of the normalized product changes.
    products = np.stack([thresholds - 1e-3, thresholds + 1e-3]).astype(np.float32)
    np.testing.assert_array_equal(np.sign(norm(products)), np.stack([-np.ones(4), np.ones(4)]))
    again = graph_ops.ShiftBatchNormalization.from_config(norm.get_config())
    assert again.threshold_penalty == 0.5


def test_a_strong_penalty_leaves_no_large_threshold():
    x, y = random_images()
    options = {"epochs": 30, "batch_size": 8, "lr_start": 1e-2, "lr_end": 1e-2}

    def thresholds(penalty):
        network = small_network({**options, "threshold_penalty": penalty}).fit(x, y)
        return np.concatenate(
            [
                norm.moving_mean - norm.beta * np.sqrt(norm.moving_variance + 1e-3)
                for norm in network.norms
            ]
        )

    assert np.maximum(thresholds(1.0), 0).mean() < np.maximum(thresholds(0.0), 0).mean() / 2


# --- The command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epsilon", "2"], "epsilon must be a number from 0 to 1"),
        (["--epsilon", "0.1", "--images", "0"], "--images must be at least 1"),
        (["--epsilon", "0.1", "--steps", "-1"], "--steps must be at least 0"),
        (["--epsilon", "0.1"], "there is no checkpoint nowhere.keras"),
        (["--epsilon", "ten"], "argument --epsilon"),
        (["--epsilon", "1/0"], "argument --epsilon: 1/0 is no number"),
        (["--epsilon", f"{'9' * 400}/1"], "argument --epsilon"),
        (["--epsilon", "1e999999999"], "epsilon must be a number from 0 to 1, not inf"),
    ],
)
def test_wrong_flags_get_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        attack.main(["nowhere.keras", "--data_set", "digits", *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_the_command_writes_what_it_found(tmp_path, capsys):
    params = NetworkParams(conv=[4], max_pool=[1], fc=[])
    network = BinaryNeuralNetwork((8, 8, 1), 10, params)
    network.save(tmp_path / "network.keras")
    command = [str(tmp_path / "network.keras"), "--data_set", "digits", "--epsilon", "20/255"]
    command += ["--images", "30", "--steps", "3", "--searches", "5", "--out", str(tmp_path)]
    attack.main(command)
    printed = capsys.readouterr().out
    assert "natural accuracy" in printed and "attacked accuracy at epsilon 0.0784314" in printed
    rows = (tmp_path / "attack.csv").read_text().splitlines()
    assert rows[0] == "index,label,predicted,verdict" and len(rows) == 31
    found = np.load(tmp_path / "attacked.npz")
    labels = np.array([row.split(",") for row in rows[1:]])
    fooled = labels[found["index"]]
    assert len(fooled) == (labels[:, 3] == "fooled").sum() > 0
    assert (network.classify(found["image"]) != fooled[:, 1].astype(int)).all()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit):
        attack.main([*command, "--seed", "1"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"attack.py: error: {tmp_path} holds another attack: take another --out"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
