"""How much faster is a training step in bfloat16 than in float32 on this machine?

`python -m tools.step_trial` prints the ratio. `fast.precision` runs it in a process of its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from utils import NetworkParams, TrainingParams

# isort: split
import numpy as np

IMAGE = 32, 32, 3
CLASSES = 10
STEPS = 5


def trained_step(precision: str, filters: int, batch: int) -> Callable[[], object]:
    """A function that does one training step of a small network and waits for its end.

    Its second convolution has the shape of the paper's: there a training spends its time.
    """
    import bnn
    import training

    params = NetworkParams(conv=[filters, filters], max_pool=[False, True], fc=[])
    trained = TrainingParams(batch_size=batch, precision=precision)
    model = bnn.BinaryNeuralNetwork(IMAGE, CLASSES, params, trained).model
    training.compile_for(model, trained, batch * CLASSES)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (batch, *IMAGE), np.uint8)
    y = rng.integers(0, CLASSES, batch)
    return lambda: model.train_on_batch(x, y)


def speedup(filters: int = 128, batch: int = 25) -> float:
    """Median time of a step in float32 over that in bfloat16, measured in turns."""
    steps = [trained_step(name, filters, batch) for name in ("float32", "mixed_bfloat16")]
    seconds = [[], []]
    for turn in range(STEPS + 1):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if turn:  # The first turn compiles.
                times.append(time.perf_counter() - start)
    float32, bfloat16 = map(statistics.median, seconds)
    return float32 / bfloat16


if __name__ == "__main__":
    cli = argparse.ArgumentParser("python -m tools.step_trial", description=__doc__)
    cli.parse_args()
    print(speedup())
