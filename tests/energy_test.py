"""Operations and bytes of an image, against sums written out by hand."""

import pytest

from bnn import BinaryNeuralNetwork, NetworkParams
from tools.energy import DRAM, ENERGY, costs

SIZES = {"conv": [64, 64, 128], "max_pool": [0, 0, 1], "fc": [32]}
# Bytes of one image of bits between the layers of these sizes, 8×8 and 4×4.
FIRST, THIRD = 64 * 64 // 8, 128 * 16 // 8
DENSE = [32 // 8, 10 * 4]


def counted(in_dim=(8, 8, 1), **params):
    return costs(BinaryNeuralNetwork(in_dim, 10, NetworkParams(**SIZES, **params)))


def test_the_papers_network():
    found = counted()
    products = 9 * 64 * 64 * 64 + 9 * 64 * 128 * 64 + 2048 * 32 + 32 * 10
    assert found["1-bit multiply-adds"] == products
    thresholds = 2 * 64 * 64 + 128 * 16 + 32
    assert found["integer additions"] == 9 * 64 * 64 + thresholds
    assert found["float additions"] == 2 * 10
    weights = 9 * (64 + 64 * 64 + 64 * 128) + 2048 * 32 + 32 * 10
    assert found["bytes of weights"] == -(-weights // 8)
    moved = 64 + 2 * (2 * FIRST + THIRD + DENSE[0]) + DENSE[1]
    assert found["bytes of activations"] == moved
    energy = sum(found[name] * each for name, each in ENERGY.items())
    assert found["µJ computing"] == pytest.approx(energy / 1e6, abs=0.01)
    moved += found["bytes of weights"]
    assert found["µJ DRAM, most"] == pytest.approx(moved * DRAM[1] / 1e6, abs=0.1)


def test_a_network_of_bits_has_no_float_between_its_layers():
    found = counted(network="boolnet", slices=8)
    assert found["float additions"] == 2 * 10
    assert found["1-bit logic"] == 64 * 64 + 128 * 16
    # Slices; conv_1; conv_2 and its shortcut; conv_3, which writes and reads a shortcut.
    moved = 64 + 2 * 64 + FIRST + 3 * FIRST + 2 * FIRST + 3 * THIRD
    moved += THIRD + 2 * DENSE[0] + DENSE[1]
    assert found["bytes of activations"] == moved
    assert found["integer additions"] == 8 * 64 + 2 * 64 * 64 + 2 * 128 * 16 + 32


def test_its_twin_moves_its_shortcuts_as_floats():
    found = counted(network="residual")
    assert found["float additions"] == 2 * (2 * 64 * 64 + 2 * 128 * 16 + 10) + 64 * 64 + 128 * 16
    # conv_2 is joined by the floats of conv_1, conv_3 by those of a convolution of signs. Of both
    # sums only the signs are read.
    moved = 64 + 3 * 32 * FIRST + 3 * FIRST + 2 * 32 * THIRD + 2 * THIRD + 2 * DENSE[0] + DENSE[1]
    assert found["bytes of activations"] == moved


def test_a_float_network_multiplies_floats():
    found = counted(bin_weights=False, bin_acts=False)
    assert found["1-bit multiply-adds"] == found["integer additions"] == 0
    assert found["float multiplications"] > 9 * 64 * 64 * 64
