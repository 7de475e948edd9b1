"""Random packed networks on at most 16 binary pixels, and all answers they can give."""

import itertools

import numpy as np
from oracles import numpy_convolution, numpy_max_pool

from packed.program import (
    ALWAYS,
    NEVER,
    Levels,
    Logic,
    PixelsProduct,
    Pool,
    Product,
    Program,
    Reshape,
    Scores,
    Shortcut,
    Slices,
    Threshold,
)

SHAPES = [(4, 4, 1), (3, 5, 1), (2, 3, 2), (5, 2, 1), (2, 2, 3), (3, 3, 1), (7, 2, 1)]


def all_images(image):
    """Every image that differs by at most 1 from one of pixels 0 and 255."""
    values = [(0, 1) if pixel == 0 else (254, 255) for pixel in image.ravel()]
    return np.array(list(itertools.product(*values)), np.uint8).reshape(-1, *image.shape)


def numpy_step(step, x, other=None):
    """What a step makes of one value or two, for many images."""
    match step:
        case Slices():
            above = x[..., None] >= step.thresholds
            return np.where(above, 1, -1).reshape(*x.shape[:-1], -1)
        case Shortcut():
            return np.where(x >= np.where(other > 0, step.upper[1], step.upper[0]), 1, -1)
        case Logic():
            return x * other if step.operation == "xnor" else np.maximum(x, other)
        case Levels():
            return step.table[x]
        case Product():
            x = 2 * x.astype(np.int32) - 255 if isinstance(step, PixelsProduct) else x
            weights = step.weights.astype(np.int32)
            if weights.ndim == 2:
                return x @ weights
            return numpy_convolution(x, weights, step.strides, padding=step.padding)
        case Threshold():
            negative = step.lower if step.ternary else step.upper - 1
            return np.where(x >= step.upper, 1, np.where(x <= negative, -1, 0))
        case Pool():
            return numpy_max_pool(x)
        case Reshape():
            return x.reshape(len(x), -1)
        case Scores():
            products = x.astype(np.float32) * np.float32(step.scale)
            deviations = np.sqrt(step.moving_variance + np.float32(1e-3))
            return (products - step.moving_mean) * (1 / deviations) + step.beta


def score_table(program):
    """Scores of every whole number that the output layer may reach."""
    largest = program.steps[-2].largest
    products = np.repeat(np.arange(-largest, largest + 1)[:, None], program.out_dim, axis=1)
    return numpy_step(program.steps[-1], products)


def random_program(rng, image):
    """A network whose thresholds split the images around `image`, and its scores on all of them."""
    x, steps, classes = all_images(image), [], int(rng.integers(2, 5))
    values = [x]

    def add(step):
        nonlocal x
        steps.append(step)
        x = numpy_step(step, *(values[number] for number in step.inputs))
        values.append(x)

    def name():
        return f"step_{len(steps)}", (len(steps),)

    def limits(units):
        # Of constant units too, and at values that the products do reach.
        found = x.reshape(-1, units)
        upper = np.array([rng.choice(column) for column in found.T]).astype(np.int32)
        upper[rng.random(units) < 0.05] = rng.choice([NEVER, ALWAYS])
        return upper

    def join():
        """Another convolution of the same shape, and what was there before as a shortcut."""
        before, units = len(steps), x.shape[-1]
        weights = rng.choice(np.int8([-1, 0, 1]), (2, 3, units, units))
        add(Product.of_weights(*name(), weights, padding="same"))
        if rng.random() < 0.5:
            upper = np.stack([limits(units), limits(units)])
            add(Shortcut(f"step_{len(steps)}", (len(steps), before), upper=upper))
        else:
            add(Threshold(*name(), upper=limits(units)))
            operation = str(rng.choice(["xnor", "or"]))
            add(Logic(f"step_{len(steps)}", (len(steps), before), operation=operation))

    def product(kind, units, convolution):
        zeros = rng.choice([0, 0.3, 0.7])
        size = rng.integers(1, 4, 2) if convolution else ()
        kernel = (*size, x.shape[-1], units)
        weights = rng.choice(
            np.int8([-1, 0, 1]), kernel, p=[(1 - zeros) / 2, zeros, (1 - zeros) / 2]
        )
        options = {}
        if convolution:
            fits = all(n <= m for n, m in zip(size, x.shape[1:3], strict=True))
            padding = rng.choice(["same", "valid"]) if fits else "same"
            strides = tuple(map(int, rng.integers(1, 3, 2)))
            options = {"strides": strides, "padding": str(padding)}
        add(kind.of_weights(*name(), weights, **options))

    def threshold():
        upper = limits(x.shape[-1])
        ternary = bool(rng.random() < 0.5)
        gaps = rng.integers(0, 4, len(upper))
        lower = np.maximum(upper.astype(int) - 1 - gaps, ALWAYS).astype(np.int32)
        add(Threshold(*name(), ternary=ternary, upper=upper, lower=lower if ternary else None))
        return ternary

    if rng.random() < 0.3:
        # It rises at 1, at 255, at both, or at neither; and elsewhere.
        rises = np.append(rng.choice([1, 255], 2), rng.integers(1, 256, 5))
        levels = np.sort(rng.integers(0, 256, len(rises) + 1)).astype(np.uint8)
        table = levels[np.searchsorted(np.sort(rises), np.arange(256), side="right")]
        add(Levels(*name(), table=table))
    kind = PixelsProduct
    if rng.random() < 0.3:
        thresholds = np.sort(rng.choice([1, 2, 128, 254, 255], 3, replace=False)).astype(np.uint8)
        add(Slices(*name(), slices=3, thresholds=thresholds))
        kind = Product
    for _ in range(rng.integers(0, 3)):
        product(kind, int(rng.integers(2, 6)), convolution=True)
        if not threshold() and rng.random() < 0.6:
            join()
        if rng.random() < 0.4:
            add(Pool(*name()))
        kind = Product
    add(Reshape(*name()))
    for _ in range(rng.integers(0, 3)):
        product(kind, int(rng.integers(3, 9)), convolution=False)
        threshold()
        kind = Product
    product(kind, classes, convolution=False)
    # Few different values, so that scores are often equal.
    centre = x.mean(axis=0) * rng.choice([1, 0.5])
    norm = {
        "moving_mean": np.round(centre + rng.integers(-1, 2, classes)),
        "moving_variance": rng.choice([1.0, 1.0, 4.0, 0.37], classes),
        "beta": rng.choice([0.0, 0.0, 0.5, -0.3], classes),
    }
    scale = 1 / 255 if kind is PixelsProduct else 1.0
    if scale != 1.0:
        norm["moving_mean"] = norm["moving_mean"] / 255
    norm = {key: value.astype(np.float32) for key, value in norm.items()}
    last = Scores(*name(), scale=scale, **norm)
    if rng.random() < 0.5:
        # One class wins everywhere, at worst by a tie or by rounding.
        scores = numpy_step(last, x)
        winner = int(rng.integers(classes))
        behind = np.max(scores.max(axis=1) - scores[:, winner])
        norm["beta"][winner] += behind
    add(Scores(*name(), scale=scale, **norm))
    return Program(image.shape, classes, steps), x
