"""What every test needs before TensorFlow is imported."""

import os

import utils  # noqa: F401 (its settings are read when TensorFlow is imported)

os.environ.setdefault("MPLBACKEND", "Agg")
