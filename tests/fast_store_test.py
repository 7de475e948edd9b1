"""Activations come back as they were put in, those of −1, 0 and 1 from bits."""

import numpy as np
import pytest
from oracles import signs, ternaries

from fast.store import Store

rng = np.random.default_rng(0)
FLOATS = rng.standard_normal((4, 3, 5)).astype(np.float32)
VALUES = {
    "signs": signs(rng, 4, 3, 5, 7).astype(np.float32),
    "ternaries": ternaries(rng, 4, 3, 5, 7).astype(np.float32),
    "one ternary image": np.where(np.arange(4)[:, None] == 2, 0, signs(rng, 4, 9)).astype("f4"),
    "zeros": np.zeros((4, 9), np.float32),
    "floats": FLOATS,
    "whole numbers": np.float32([[5, -32767], [3, 32767]]),
    "larger whole numbers": np.float32([[5, 2], [32768, 3]]),
    "infinity": np.float32([[5, 2], [3, np.inf]]),
    "one float": np.where(FLOATS.max() == FLOATS, 0.5, np.sign(FLOATS)),
    "not a number": np.full((2, 3), np.nan, np.float32),
    "pixels": rng.integers(0, 256, (4, 6)).astype(np.uint8),
    "pixels of 0 and 1": rng.integers(0, 2, (4, 6)).astype(np.uint8),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_is_stored_comes_back(kind):
    values = VALUES[kind]
    store = Store([values[:1]])
    store.append(values[1:])
    assert len(store) == 2
    for found, expected in zip((store[0], store[1]), (values[:1], values[1:]), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_whole_numbers_take_two_bytes():
    assert Store([VALUES["whole numbers"], FLOATS]).nbytes == 8 + FLOATS.nbytes


@pytest.mark.parametrize(("kind", "values_per_byte"), [("signs", 8), ("ternaries", 4)])
def test_signs_take_a_bit_and_ternaries_two(kind, values_per_byte):
    draw = signs if kind == "signs" else ternaries
    values = draw(np.random.default_rng(0), 10, 64, 64).astype(np.float32)
    assert Store([values]).nbytes == values.size / values_per_byte
