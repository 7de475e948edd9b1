"""Quantizers of one's own: a registered function of ten lines trains, saves, reloads, reports.

`run_bnn.py --quantizer NAME` and `NetworkParams(quantizer=NAME)` train with it, everywhere that
opens the checkpoint finds it by that name. A function takes a tensor and the network's threshold
and returns a tensor of the same shape and dtype, with the gradient that training shall see;
`graph_ops.straight_through` gives the usual one.
"""

import graph_ops  # Before tensorflow: see there.

# isort: split
import tensorflow as tf


@graph_ops.register_quantizer("scaled_sign", activations="binary")
def scaled_sign(w: tf.Tensor, threshold: float | tf.Tensor = 0.0) -> tf.Tensor:
    """α·sign(w), α the mean of |w| over the entries of each unit, straight through.

    The weights of XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279): of all multiples of the
    signs the one next to w. The scale changes no angle, and batch norm takes it out again.
    """
    del threshold
    scale = tf.reduce_mean(tf.abs(w), axis=list(range(w.shape.rank - 1)), keepdims=True)
    return graph_ops.straight_through(w, scale * graph_ops.binarize(w))
