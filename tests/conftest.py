"""What tests need before TensorFlow is imported, and what several of them share."""

import os

import pytest

import utils  # noqa: F401 (its settings are read when TensorFlow is imported)

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def runs_bfloat16():
    """Skip the test, by name, where bfloat16 would kill its process."""
    from fast.precision import survives_bfloat16

    if not survives_bfloat16():
        pytest.skip("bfloat16 kills TensorFlow on this machine")
