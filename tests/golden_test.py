"""What the networks computed before the code was rearranged: scores, geometry, training steps.

`golden.npz` holds the figures. Another processor rounds otherwise in the last digit, so the test
allows for that; `GOLDEN_EXACT=1` asks for equal bits, on the machine that wrote the file.
`python tests/golden_test.py` writes it anew: only where a change of the figures is meant.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden.npz")
CHECKPOINT = ROOT / "results" / "cifar-10_binary" / "network.keras"
IMAGES = 200
KINDS = {
    "binary": {},
    "ternary": {"levels": 3, "threshold": 0.05},
    "ternary_sigma": {"levels": 3, "threshold_sigma": 0.6, "activation_threshold": 0.3},
    "mixed": {"bin_weights": [1, 0, 1, 1], "bin_acts": [0, 1, 1, 1]},
    "rotated": {"rotate_first": "random"},
    "scaled": {"quantizer": "scaled_sign"},
}
BFLOAT16 = "binary bfloat16"


def smooth_images(shape, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 256, (shape[0], -(-shape[1] // 4), -(-shape[2] // 4), shape[3]))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : shape[1], : shape[2]]
    return np.clip(images + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)


def published():
    """Scores of the published network, and its layers' angles and correlations."""
    from bnn import BinaryNeuralNetwork
    from measure import measure_layers

    network = BinaryNeuralNetwork.load(CHECKPOINT)
    x = smooth_images((IMAGES, 32, 32, 3))
    layers = measure_layers(network, x[:50])
    return {
        "scores": network.predict(x),
        "angles": np.concatenate([layer.angles for layer in layers]),
        "weights_dot": [layer.weights_dot.r for layer in layers],
        "activations_dot": [layer.activations_dot.r for layer in layers[1:]],
        "unit_r": np.concatenate([layer.weights_dot.unit_r for layer in layers]),
    }


def trained(kind):
    """Weights and scores of a small network after three steps."""
    from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams

    params = NetworkParams(conv=[40, 36], max_pool=[0, 1], fc=[20], **KINDS.get(kind, {}))
    training = TrainingParams(
        epochs=1,
        batch_size=16,
        lr_start=1e-2,
        augment="crop-flip",
        precision="mixed_bfloat16" if kind == BFLOAT16 else "float32",
    )
    network = BinaryNeuralNetwork((10, 9, 3), 4, params, training)
    x, y = smooth_images((48, 10, 9, 3)), np.arange(48) % 4
    network.fit(x, y)
    weights = [w.ravel() for w in network.model.get_weights()]
    return {"weights": np.concatenate(weights), "scores": network.predict(x)}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def compare(found, golden, prefix, rtol):
    for name, value in found.items():
        expected = golden[f"{prefix}/{name}"]
        if os.environ.get("GOLDEN_EXACT"):
            np.testing.assert_array_equal(value, expected, err_msg=name)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol, err_msg=name)


def test_the_published_network_answers_and_measures_as_before(golden):
    compare(published(), golden, "published", 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_network_trains_as_before(kind, golden):
    compare(trained(kind), golden, kind, 2e-3)


@pytest.mark.skipif(not os.environ.get("GOLDEN_EXACT"), reason="bfloat16 rounds by machine")
def test_a_small_network_trains_in_bfloat16_as_before(golden):
    compare(trained(BFLOAT16), golden, BFLOAT16, 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    arrays = {f"published/{name}": value for name, value in published().items()}
    for kind in (*KINDS, BFLOAT16):
        arrays |= {f"{kind}/{name}": value for name, value in trained(kind).items()}
    np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN, GOLDEN.stat().st_size, "bytes")
