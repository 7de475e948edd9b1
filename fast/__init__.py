"""What makes training and inference quick: convolutions, bits, precision, batches of images."""

import utils  # noqa: F401 (first: its settings are read when TensorFlow is imported)

# isort: split
import tensorflow as tf

# XLA makes one pass over memory of each element-wise function, where the framework's kernels make
# one for every operation. Convolutions stay with oneDNN, which XLA does not reach.
compiled = tf.function(jit_compile=True)
# Every layer has shapes of its own, each of which is traced once: no reason to warn.
tf.get_logger().addFilter(lambda record: "retracing" not in record.getMessage())
