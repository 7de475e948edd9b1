"""Adam on latent weights is Keras' Adam; Bop, averages and freezing, step by step in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from example_networks import random_images, small_network

import training
from bnn import BinaryNeuralNetwork
from optimizers import FLIP_MEMORY, AveragingAdam, Bop, FreezingAdam, LatentAdam
from utils import TrainingParams


def test_latent_adam_is_keras_adam_on_clipped_gradients():
    rng = np.random.default_rng(0)
    # From gradients that ε drowns to gradients that are clipped.
    scales = 10.0 ** rng.integers(-9, 2, (50, 40))
    gradients = [(rng.standard_normal((50, 40)) * scales).astype(np.float32) for _ in range(20)]
    ends = []
    for optimizer in (
        keras.optimizers.Adam(0.01, beta_2=0.99, clipvalue=0.5),
        LatentAdam(0.01, 0.5),
    ):
        variable = keras.Variable(np.zeros((50, 40), np.float32))
        for value in gradients:
            optimizer.apply([tf.constant(value)], [variable])
        ends.append(variable.numpy())
    assert np.abs(ends[0]).min() > 0
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "optimizer",
    [
        LatentAdam(0.01, clip=0.25),
        AveragingAdam(0.01, gamma=0.5, kernels=["a"], clip=0.25),
        Bop(0.01, gamma=0.5, threshold=1e-3, kernels=["a"]),
        FreezingAdam(0.01, limit=0.1, kernels=["a"]),
    ],
)
def test_an_optimizer_is_saved_with_its_parameters(optimizer):
    optimizer.learning_rate = 0.001  # Later in the training; the first rate is kept.
    config = optimizer.get_config()
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    assert again.clip == optimizer.clip
    assert getattr(again, "first_rate", 0.01) == 0.01


def drifting_gradients(shape, steps):
    """Noise about a mean that changes sign halfway, so that weights flip both ways."""
    rng = np.random.default_rng(1)
    mean = 0.3 * rng.standard_normal(shape)
    for step in range(steps):
        sign = 1 if step < steps // 2 else -1
        yield (sign * mean + rng.standard_normal(shape)).astype(np.float32)


def test_bop_against_numpy_step_by_step():
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, (30, 20)).astype(np.float32)
    kernel, other = keras.Variable(start, name="kernel"), keras.Variable(start, name="other")
    alone = keras.Variable(start, name="other")
    adam = LatentAdam(0.01, 0.5)
    optimizer = Bop(0.01, gamma=0.05, threshold=0.1, kernels=[kernel.path], clip=0.5)
    optimizer.build([kernel, other])
    m, w, flips = np.zeros_like(start), np.where(start >= 0, 1, -1).astype(np.float32), 0
    for step, gradient in enumerate(drifting_gradients(start.shape, 60)):
        # As training does between epochs; γ falls with the learning rate.
        optimizer.learning_rate = adam.learning_rate = 0.01 if step < 40 else 0.005
        gamma = np.float32(0.05 if step < 40 else 0.025)
        tensor = tf.constant(gradient)
        optimizer.apply([tensor, tensor], [kernel, other])
        adam.apply([tensor], [alone])
        m = (1 - gamma) * m + gamma * gradient
        flip = (np.abs(m) > 0.1) & (np.sign(m) == w)
        w, flips = np.where(flip, -w, w), flips + flip.sum()
        np.testing.assert_array_equal(kernel.numpy(), w, err_msg=f"step {step}")
    assert flips > start.size / 2
    np.testing.assert_array_equal(other.numpy(), alone.numpy())


def test_averaging_changes_nothing_and_keeps_bops_average():
    x, y = random_images()
    plain, averaging = small_network(), small_network({"bop_gamma": 0.1})
    for network in (plain, averaging):
        network.fit(x, y)
    np.testing.assert_array_equal(plain.predict(x), averaging.predict(x))
    assert plain.gradient_averages == {}
    averages = averaging.gradient_averages
    assert averages.keys() == {layer.name for layer in averaging.layers}
    assert all(np.any(average) for average in averages.values())


def test_freezing_against_numpy_step_by_step():
    rng = np.random.default_rng(0)
    # Latent weights so near to zero that noise flips them.
    start = (0.01 * rng.standard_normal((30, 20))).astype(np.float32)
    kernel, alone = keras.Variable(start, name="kernel"), keras.Variable(start, name="alone")
    optimizer = FreezingAdam(0.01, limit=0.025, kernels=[kernel.path], clip=5.0)
    optimizer.build([kernel])
    adam = LatentAdam(0.01, clip=5.0)
    share = np.float32(1 / FLIP_MEMORY)
    rate, mean_sign = np.zeros_like(start), np.zeros_like(start)
    w, frozen = start, np.zeros(start.shape, bool)
    sign = lambda values: np.where(values >= 0, 1, -1).astype(np.float32)  # noqa: E731
    for step, gradient in enumerate(drifting_gradients(start.shape, 120)):
        alone.assign(w)  # The same moments, from the same weights.
        adam.apply([tf.constant(gradient)], [alone])
        optimizer.apply([tf.constant(gradient)], [kernel])
        moved = np.where(frozen, w, alone.numpy())
        rate = np.where(frozen, rate, (1 - share) * rate + share * (sign(moved) != sign(w)))
        mean_sign = np.where(frozen, mean_sign, (1 - share) * mean_sign + share * sign(moved))
        freezes = (rate > 0.025) & ~frozen
        w = np.where(freezes, np.abs(moved) * sign(mean_sign), moved)
        frozen |= freezes
        np.testing.assert_allclose(kernel.numpy(), w, atol=1e-6, err_msg=f"step {step}")
    assert 0.02 < frozen.mean() < 0.9
    assert optimizer.frozen_share() == pytest.approx(frozen.mean())


def test_bop_trains_binary_weights_and_its_average_is_saved(tmp_path):
    x, y = random_images()
    network = small_network({"optimizer": "bop", "bop_gamma": 0.2, "bop_threshold": 1e-5})
    before = [layer.latent_kernel.numpy() for layer in network.layers]
    network.fit(x, y)
    for layer, start in zip(network.layers, before, strict=True):
        kernel = layer.latent_kernel.numpy()
        np.testing.assert_array_equal(np.abs(kernel), 1)
        assert 0 < np.mean(kernel != np.where(start >= 0, 1, -1)) < 1
    for compact in (False, True):
        path = tmp_path / f"{compact}.keras"
        network.save(path, compact=compact)
        opened = BinaryNeuralNetwork.load(path)
        np.testing.assert_array_equal(opened.predict(x), network.predict(x))
        assert opened.gradient_averages.keys() == network.gradient_averages.keys()
        for name, average in network.gradient_averages.items():
            np.testing.assert_array_equal(opened.gradient_averages[name], average)


REFUSED = {
    "optimizer": ({"optimizer": "sgd"}, "optimizer must be"),
    "gamma": ({"optimizer": "bop", "bop_gamma": 0}, "bop_gamma must be"),
    "gamma above 1": ({"bop_gamma": 1.5}, "bop_gamma must be"),
    "threshold": ({"optimizer": "bop", "bop_threshold": -1}, "bop_threshold must be"),
    "threshold alone": ({"bop_threshold": 1e-8}, "needs optimizer bop"),
    "kurtosis": ({"kurtosis": 0.5}, "kurtosis must be"),
    "kurtosis and bop": ({"kurtosis": 3, "optimizer": "bop"}, "exclude each other"),
    "teacher": ({"teacher": ""}, "teacher must be"),
    "temperature": ({"teacher": "a.keras", "temperature": 0}, "temperature must be"),
    "freeze": ({"freeze_oscillating": 0}, "freeze_oscillating must be"),
    "freeze and bop": ({"freeze_oscillating": 0.1, "optimizer": "bop"}, "exclude each other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_parameters_are_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        TrainingParams(**options)


@pytest.mark.parametrize(
    "options", [{"optimizer": "bop"}, {"bop_gamma": 0.1}, {"freeze_oscillating": 0.1}]
)
@pytest.mark.parametrize(
    "network", [{"levels": 3}, {"bin_weights": False, "bin_acts": False}, {"rotate_first": "pca"}]
)
def test_what_needs_flips_is_refused_where_nothing_is_a_sign(options, network):
    with pytest.raises(ValueError, match=r"needs binary weights|exclude each other"):
        small_network(options, **network)


def test_bop_refuses_a_keras_model_without_binary_kernels():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x, y = np.ones((8, 4), np.float32), np.arange(8) % 3
    with pytest.raises(ValueError, match="quantizes its weights by the sign"):
        training.fit(model, x, y, TrainingParams(optimizer="bop", epochs=1, batch_size=4))


# --- Kurtosis ---


@pytest.mark.parametrize("target", [1.8, 3, 6])
def test_the_penalty_moves_each_unit_to_its_kurtosis(target):
    rng = np.random.default_rng(0)
    w = keras.Variable(rng.uniform(-0.1, 0.1, (400, 3)).astype(np.float32))
    penalty, adam = training.Kurtosis(target), keras.optimizers.Adam(3e-4)
    for _ in range(400):
        with tf.GradientTape() as tape:
            loss = penalty(w)
        adam.apply(tape.gradient(loss, [w.value]), [w])
    values = w.numpy()
    kurtosis = np.mean(values**4, 0) / np.mean(values**2, 0) ** 2
    np.testing.assert_allclose(kurtosis, target, atol=0.1)
    other = np.mean((kurtosis - target - 1) ** 2)
    got = float(training.Kurtosis(target + 1)(w))
    assert got == pytest.approx(training.KURTOSIS_WEIGHT * other, rel=1e-3)


def test_a_unit_of_zeros_has_a_finite_penalty_and_gradient():
    w = tf.zeros((10, 2))
    with tf.GradientTape() as tape:
        tape.watch(w)
        loss = training.Kurtosis(3.0)(w)
    assert np.isfinite(loss) and np.all(np.isfinite(tape.gradient(loss, w)))


def test_the_penalty_is_part_of_the_networks_loss_and_of_its_file(tmp_path):
    network = small_network({"kurtosis": 1.8})
    assert len(network.model.losses) == len(network.layers)
    network.save(tmp_path / "network.keras")
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    assert opened.training_params.kurtosis == 1.8
    assert len(opened.model.losses) == len(network.layers)
    assert small_network().model.losses == []
