"""What makes training and inference quick: convolutions, bits, precision, batches of images."""

import os

import utils  # First: its settings are read when TensorFlow is imported.

utils.require(
    os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow",
    f"KERAS_BACKEND is {os.environ.get('KERAS_BACKEND')}, but this program needs tensorflow",
)

# isort: split
import tensorflow as tf  # noqa: E402

# XLA makes one pass over memory of each element-wise function, where the framework's kernels make
# one for every operation. Convolutions stay with oneDNN, which XLA does not reach. AutoGraph would
# find no tensor to branch on, and take a third of the time of tracing.
compiled = tf.function(jit_compile=True, autograph=False)
# Every layer has shapes of its own, each of which is traced once: no reason to warn.
tf.get_logger().addFilter(lambda record: "retracing" not in record.getMessage())
