"""Losses against NumPy; what a training promises: its seed, its resume, its last statistics."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from example_networks import random_images, small_network, trained

import graph_ops
import training
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import load_data

# --- Losses -----------------------------------------------------------------------------------


def test_squared_hinge_against_numpy():
    rng = np.random.default_rng(7)
    scores, labels = rng.normal(size=(6, 4)).astype(np.float32) * 2, np.array([0, 1, 2, 3, 3, 0])
    targets = np.full((6, 4), -1.0)
    targets[np.arange(6), labels] = 1
    expected = np.mean(np.maximum(0, 1 - targets * scores) ** 2, axis=1)
    np.testing.assert_allclose(training.squared_hinge(labels, scores), expected, rtol=1e-6)
    np.testing.assert_allclose(training.squared_hinge(labels[:, None], scores), expected, rtol=1e-6)


def test_softmax_loss_is_finite_for_scores_far_apart():
    loss = training.loss_named("softmax")
    scores = tf.constant([[1000.0, -1000.0], [-1000.0, 1000.0]])
    assert float(loss(tf.constant([0, 0]), scores)) == pytest.approx(1000.0)


# --- Training ---------------------------------------------------------------------------------


def test_the_seed_fixes_everything():
    x, y = random_images()
    first, second = (small_network().fit(x, y) for _ in range(2))
    assert first.history["loss"] == second.history["loss"]
    np.testing.assert_array_equal(first.predict(x), second.predict(x))


def bright_quarters(count):
    """Images in which each of four classes has a bright quarter of its own."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, count)
    x = rng.integers(0, 100, (count, 9, 7, 2)).astype(np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) : 4 + 4 * (label // 2), 3 * (label % 2) : 3 + 3 * (label % 2)] += 150
    return x, y


LEARNING = TrainingParams(epochs=10, batch_size=20, lr_start=1e-2, lr_end=1e-3)


def test_training_learns():
    x, y = bright_quarters(200)
    params = NetworkParams(conv=[8], max_pool=[1], fc=[16])
    network = BinaryNeuralNetwork((9, 7, 2), 4, params, LEARNING).fit(x[:150], y[:150])
    assert network.score(x[150:], y[150:]) > 0.9


def classifier():
    """Stock layers of Keras with one quantized layer among them."""
    return keras.Sequential(
        [
            keras.Input((9, 7, 2)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalMaxPooling2D(),
            graph_ops.QuantDense(16, kernel_quantizer="sign"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4),
        ]
    )


@pytest.mark.parametrize("loss_mode", ["hinge-loss", "softmax"])
def test_any_keras_classifier_can_be_trained(loss_mode):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 9, 7, 2)).astype(np.float32), np.arange(40) % 4
    x[y == 0] += 2
    params = TrainingParams(epochs=3, batch_size=20, lr_start=1e-2, loss_mode=loss_mode)
    model = classifier()
    history = training.fit(model, x, y, params, validation=(x, y))
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["val_accuracy"]) == 3
    # The last statistics are those of all images.
    first = model.layers[0](x).numpy()
    np.testing.assert_allclose(model.layers[1].moving_mean, first.mean((0, 1, 2)), atol=1e-5)


def test_training_ends_with_statistics_of_the_final_weights():
    network, x, _ = trained()
    before = network.model.get_weights()
    assert any(np.any(norm.moving_mean) for norm in network.norms)
    after = network.refit_batch_norm(x).model.get_weights()
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_sees_statistics_of_the_epochs_weights():
    x, y = random_images()
    network = small_network().fit(x, y, x, y)
    # Nothing changes the weights between the last validation and the final statistics.
    assert network.history["val_accuracy"][-1] == pytest.approx(network.score(x, y))


# --- Teachers ---


def test_a_teachers_loss_is_the_divergence_of_both_softmaxes():
    x, y = random_images()
    teacher, student = small_network(bin_weights=False, bin_acts=False), small_network()
    for with_labels in (False, True):
        params = TrainingParams(
            teacher="one.keras", temperature=2.0, with_labels=with_labels, kurtosis=3
        )
        student = small_network({"kurtosis": 3})
        training.compile_for(student.model, params, 1)
        distiller = training._taught(student.model, teacher.model, params)
        scores = student.model(x, training=False).numpy().astype(float)
        got = float(distiller.compute_loss(x, y, tf.constant(scores, tf.float32)))
        p, q = (np.exp(s / 2) for s in (teacher.predict(x).astype(float), scores))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected = 4 * np.mean(np.sum(p * np.log(p / q), axis=1))
        if with_labels:
            labels = float(np.mean(training.squared_hinge(y, tf.constant(scores))))
            expected = 0.5 * (expected + labels)
        assert got == pytest.approx(expected + float(sum(student.model.losses)), rel=1e-4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    x, y = random_images()
    small_network({"epochs": 4}, bin_weights=False, bin_acts=False).fit(x, y).save(path)
    return str(path)


def test_without_labels_no_label_has_a_part(teacher):
    x, y = random_images()
    ends = {}
    for with_labels in (False, True):
        options = {"teacher": teacher, "with_labels": with_labels}
        ends[with_labels] = [small_network(options).fit(x, t).predict(x) for t in (y, (y + 1) % 4)]
    np.testing.assert_array_equal(*ends[False])
    assert np.any(ends[True][0] != ends[True][1])
    assert np.any(ends[True][0] != ends[False][0])


def test_a_student_learns_from_its_teacher_alone(tmp_path):
    x, y = bright_quarters(200)
    sizes = {"conv": [8], "max_pool": [1], "fc": [16]}
    floats = NetworkParams(**sizes, bin_weights=False, bin_acts=False)
    BinaryNeuralNetwork((9, 7, 2), 4, floats, LEARNING).fit(x[:150], y[:150]).save(
        tmp_path / "teacher.keras"
    )
    params = dataclasses.replace(LEARNING, teacher=str(tmp_path / "teacher.keras"))
    student = BinaryNeuralNetwork((9, 7, 2), 4, NetworkParams(**sizes), params)
    student.fit(x[:150], np.zeros(150, int))
    assert student.score(x[150:], y[150:]) > 0.9


def test_a_teacher_of_other_images_or_classes_is_refused(teacher, tmp_path):
    x, y = random_images()
    network = BinaryNeuralNetwork(
        (9, 7, 2), 5, NetworkParams(conv=[5], max_pool=[0], fc=[]), TrainingParams(teacher=teacher)
    )
    with pytest.raises(ValueError, match="with 4 classes, this network"):
        network.fit(x, y)
    for path, error in ((tmp_path / "none.keras", FileNotFoundError), (__file__, ValueError)):
        with pytest.raises(error):
            small_network({"teacher": str(path)}).fit(x, y)


class Interrupt(keras.callbacks.Callback):
    """End a training in the middle of its second epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 4:
            raise KeyboardInterrupt


RESUMED = {
    "paper": {},
    "residual": {},
    "bop": {"optimizer": "bop", "bop_gamma": 0.2, "bop_threshold": 1e-5},
    "average": {"bop_gamma": 0.2},
    "kurtosis": {"kurtosis": 1.8},
    "freeze": {"freeze_oscillating": 0.015},
    "teacher": {"with_labels": True, "temperature": 2.0},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(name, teacher, tmp_path):
    x, y = random_images()
    network = "residual" if name == "residual" else "paper"
    taught = {"teacher": teacher} if name == "teacher" else {}
    options = {"network": network, "training": {"augment": "flip", **RESUMED[name], **taught}}
    whole = small_network(**options).fit(x, y)
    state = tmp_path / "state.keras"
    with pytest.raises(KeyboardInterrupt):
        small_network(**options).fit(x, y, callbacks=[Interrupt()], state=state)
    resumed = small_network(**options).fit(x, y, state=state)
    assert len(resumed.history["loss"]) == 1
    np.testing.assert_array_equal(resumed.predict(x), whole.predict(x))
    for layer, average in whole.gradient_averages.items():
        np.testing.assert_array_equal(resumed.gradient_averages[layer], average)


def test_a_loss_that_is_not_finite_ends_the_training():
    x, y = random_images()
    network = small_network(bin_weights=False, bin_acts=False)
    network.norms[-1].beta.assign([np.inf] * 4)
    with pytest.raises(ValueError, match="the loss is not finite in epoch 1"):
        network.fit(x, y)


@pytest.mark.slow
def test_bfloat16_learns_as_much_as_float32(runs_bfloat16):
    data = load_data("digits")
    params = NetworkParams(conv=[32, 32], max_pool=[0, 1], fc=[64])
    accuracies = {"float32": [], "mixed_bfloat16": []}
    for seed, (precision, found) in itertools.product(range(3), accuracies.items()):
        options = TrainingParams(
            epochs=10, lr_start=5e-3, lr_end=1e-4, seed=seed, precision=precision
        )
        network = BinaryNeuralNetwork((8, 8, 1), 10, params, options)
        network.fit(data.x_train, data.y_train)
        found.append(network.score(data.x_test, data.y_test))
    print(accuracies)
    means = [np.mean(found) for found in accuracies.values()]
    assert min(means) > 0.9
    assert abs(means[0] - means[1]) <= 0.02
