"""A packed network on a box of images, as reified linear constraints.

Every unit becomes a constant plus weights times literals, and every threshold one constraint. What
no image of the box can change becomes a constant: bounds on each dot product tell. Nothing is
rounded, and the scores of the output layer, which are floats, are taken from a table.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from packed.program import Program
from utils import require
from verification.constraints import FALSE, LARGEST, TRUE, Constraints

# --- Values -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """A value of the program on every image of a box: constant + Σ weights·literals, per unit.

    Attributes
    ----------
    constant : ndarray of int64, any shape
    weights : ndarray of int64, shape (planes, *constant.shape)
        None is negative.
    literals : ndarray of int64, shape (planes, *constant.shape)
        `FALSE` where a unit needs fewer planes.
    """

    constant: np.ndarray
    weights: np.ndarray
    literals: np.ndarray

    @classmethod
    def of_bits(cls, *planes: np.ndarray) -> Self:
        """−1 or +1 of one array of literals; −1, 0 or +1 of two, the first implying the second."""
        literals = np.stack(planes)
        weights = np.full(literals.shape, 2 // len(planes))
        return cls(np.full(literals.shape[1:], -1), weights, literals)

    @functools.cached_property
    def low(self) -> np.ndarray:
        return self.constant + np.sum(self.weights * (self.literals == TRUE), axis=0)

    @functools.cached_property
    def high(self) -> np.ndarray:
        return self.constant + np.sum(self.weights * (self.literals != FALSE), axis=0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.constant.shape

    def rising(self) -> np.ndarray:
        """Values as one literal after another becomes true, shape (planes + 1, *constant.shape)."""
        first = self.constant[None]
        return np.concatenate([first, first + np.cumsum(self.weights, axis=0)])

    def reshaped(self, shape: Sequence[int]) -> "Units":
        planes = [array.reshape(len(array), *shape) for array in (self.weights, self.literals)]
        return Units(self.constant.reshape(shape), *planes)

    def at(self, places: np.ndarray) -> "Units":
        """The units at flat `places`, an array of any shape; −1 is a unit that is always 0."""
        flat = self.reshaped((self.constant.size,))
        padded = Units(
            np.append(flat.constant, 0),
            np.pad(flat.weights, ((0, 0), (0, 1))),
            np.pad(flat.literals, ((0, 0), (0, 1)), constant_values=FALSE),
        )
        return Units(padded.constant[places], padded.weights[:, places], padded.literals[:, places])


@dataclass(frozen=True)
class Sums:
    """Dot products of units with weights, on every image of a box.

    Attributes
    ----------
    patches : Units of shape (positions, inputs)
    kernel : ndarray of int64, shape (inputs, units)
    shape : tuple
        Of the value of the program: positions·units in all.
    """

    patches: Units
    kernel: np.ndarray
    shape: tuple

    @functools.cached_property
    def low(self) -> np.ndarray:
        return self._extreme(self.patches.low, self.patches.high)

    @functools.cached_property
    def high(self) -> np.ndarray:
        return self._extreme(self.patches.high, self.patches.low)

    def _extreme(self, where_positive, where_negative):
        # In float64, which is exact here, as NumPy multiplies no integers quickly.
        positive = where_positive.astype(float) @ np.maximum(self.kernel, 0)
        negative = where_negative.astype(float) @ np.minimum(self.kernel, 0)
        return (positive + negative).astype(int).reshape(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> "Sums":
        return replace(self, shape=shape)

    def terms(self, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Constant, weights and literals of the sum at a flat place."""
        row, unit = divmod(int(place), self.kernel.shape[1])
        kernel = self.kernel[:, unit]
        weights = self.patches.weights[:, row] * kernel
        literals = self.patches.literals[:, row]
        counts = (weights != 0) & (literals != FALSE)
        return self.patches.constant[row] @ kernel, weights[counts], literals[counts]


def _places(shape, kernel, strides, padding):
    """Flat places of what a kernel meets, shape (positions, inputs), and how many rows and columns
    of positions there are; the place −1 is padding.
    """
    places = np.arange(math.prod(shape)).reshape(shape)
    if padding == "same":
        around = []
        for size, taps, stride in zip(shape[:2], kernel[:2], strides, strict=True):
            pad = max((-(-size // stride) - 1) * stride + taps - size, 0)
            around.append((pad // 2, pad - pad // 2))
        places = np.pad(places, [*around, (0, 0)], constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(places, kernel[:2], axis=(0, 1))
    windows = windows[:: strides[0], :: strides[1]]  # (rows, columns, channels, height, width)
    flat = np.moveaxis(windows, 2, -1).reshape(-1, math.prod(kernel[:3]))
    return flat, windows.shape[:2]


# --- The network ------------------------------------------------------------------------------


class Encoding:
    """The constraints of a packed network on the images around one image.

    Parameters
    ----------
    program : packed.Program
    scores : ndarray of float32, shape (2·largest + 1, classes)
        Scores of the whole numbers −largest … largest that the output layer may reach.
    image : ndarray of uint8, shape program.in_dim
    label : int
    radius : int
        The most that a pixel may differ from that of `image`.

    Attributes
    ----------
    constraints : Constraints
    wins : dict of int to int
        For each class that may be preferred to `label` by some image, as far as bounds tell, the
        literal that is true exactly where it is. Empty: the answer is the same on all images.

    Raises
    ------
    TooLarge
        If there are more than `MOST_TERMS` terms.
    """

    def __init__(
        self, program: Program, scores: np.ndarray, image: np.ndarray, label: int, radius: int
    ):
        self.constraints = Constraints()
        self._scores, self._label = scores, label
        self._original = image.astype(int)
        self._low = np.maximum(self._original - radius, 0)
        self._high = np.minimum(self._original + radius, 255)
        cuts = _cuts(program)
        self._least, self._pixels = self._all() if cuts is None else self._levels(cuts)
        values = [self._pixels]
        for step in program.steps:
            make = _MADE.get(step.kind)
            require(make is not None, f"cannot verify a step of the kind {step.kind}")
            values.append(make(self, step, *(values[number] for number in step.inputs)))
        self.wins = values[-1]

    def image(self, is_true: Callable[[int], bool]) -> np.ndarray:
        """The image of a solution.

        Parameters
        ----------
        is_true : callable
            Tells of a variable whether it is true.

        Returns
        -------
        ndarray of uint8
        """
        pixels = self._pixels
        true = np.vectorize(lambda n: n == TRUE or (n != FALSE and is_true(n)), otypes=[bool])
        found = pixels.constant + np.sum(pixels.weights * true(pixels.literals), axis=0)
        # Where it makes no difference, the pixel stays as it was.
        found = np.where(found == self._least, self._original, np.maximum(found, self._low))
        return found.astype(np.uint8)

    # The pixels

    def _all(self):
        """Every whole number, in binary with a smaller highest digit."""
        left, weights = self._high - self._low, []
        while left.any():
            weights.append(np.minimum(left, 2 ** len(weights)))
            left = left - weights[-1]
        weights = np.array(weights, int).reshape(-1, *left.shape)
        literals = np.full(weights.shape, FALSE)
        for place in zip(*np.nonzero(weights), strict=True):
            literals[place] = self.constraints.choose()
        return self._original, Units(self._low, weights, literals)

    def _levels(self, cuts):
        """Only which of `cuts` a pixel reaches: one literal each, in rising order.

        The least pixel stands for all that reach the same cuts.
        """
        literals = np.full((len(cuts), *self._low.shape), FALSE)
        for cut, plane in zip(cuts, literals, strict=True):
            plane[cut <= self._low] = TRUE
            for place in zip(*np.nonzero((self._low < cut) & (cut <= self._high)), strict=True):
                plane[place] = self.constraints.choose()
        for lower, upper in itertools.pairwise(literals):
            for pair in zip(lower.flat, upper.flat, strict=True):
                if min(pair) > TRUE:
                    self.constraints.clauses.append((int(pair[0]), -int(pair[1])))
        weights = np.diff(cuts, prepend=0)[:, None, None, None] * np.ones(self._low.shape, int)
        reached = cuts[:, None, None, None] <= self._original
        return np.sum(weights * reached, axis=0), Units(0 * self._low, weights, literals)

    def _round(self, step, value):
        rounded = step.table.astype(int)[value.rising()]
        return Units(rounded[0], np.diff(rounded, axis=0), value.literals)

    def _slice(self, step, value):
        ends = [np.full((1, *value.shape), end) for end in (TRUE, FALSE)]
        reached = np.concatenate([ends[0], value.literals, ends[1]])
        planes = [
            np.take_along_axis(reached, np.sum(value.rising() < limit, axis=0)[None], axis=0)[0]
            for limit in step.thresholds.astype(int)
        ]
        rows, columns, _ = value.shape
        return Units.of_bits(np.stack(planes, axis=-1).reshape(rows, columns, -1))

    # The layers

    def _pixels_product(self, step, value):
        odd = Units(2 * value.constant - 255, 2 * value.weights, value.literals)
        return self._product(step, odd)

    def _product(self, step, value):
        kernel = step.weights.astype(int).reshape(-1, step.kernel[-1])
        if len(step.kernel) == 2:
            return Sums(value.reshaped((1, len(kernel))), kernel, (kernel.shape[1],))
        places, positions = _places(value.shape, step.kernel, step.strides, step.padding)
        return Sums(value.at(places), kernel, (*positions, kernel.shape[1]))

    def _threshold(self, step, sums):
        if not step.ternary:
            return Units.of_bits(self._reached(sums, step.upper))
        # The packed network, too, asks first whether a unit is positive.
        negative = np.minimum(step.lower.astype(int) + 1, step.upper)
        return Units.of_bits(*(self._reached(sums, limits) for limits in (step.upper, negative)))

    def _reached(self, sums, limits):
        """Literals that tell which sums reach their limit, in the shape of the sums."""
        limits = np.broadcast_to(limits, sums.shape).astype(int)
        literals = np.where(sums.low >= limits, TRUE, np.where(sums.high < limits, FALSE, 0))
        flat = literals.reshape(-1)
        for place in np.flatnonzero(flat == 0):
            constant, *terms = sums.terms(place)
            flat[place] = self.constraints.at_least(*terms, limits.flat[place] - constant)
        return literals

    def _pool(self, step, value):
        places, positions = _places(value.shape, (2, 2, value.shape[-1]), (2, 2), "same")
        windows = value.at(places).literals
        windows = windows.reshape(len(windows), len(places), 4, -1)
        any_true = (windows == TRUE).any(axis=2)
        literals = np.where(any_true, TRUE, np.where((windows == FALSE).all(axis=2), FALSE, 0))
        for plane, row, channel in np.argwhere(literals == 0):
            found = self.constraints.any_of(windows[plane, row, :, channel])
            literals[plane, row, channel] = found
        return Units.of_bits(*literals.reshape(len(literals), *positions, -1))

    def _join(self, step, one, other):
        """XNOR or OR of bits."""

        def joined(a, b):
            if step.operation == "or":
                return self.constraints.any_of(np.array([a, b]))
            both = [
                self.constraints.at_least(np.ones(2, int), n * np.array([a, b]), 2) for n in (1, -1)
            ]
            return self.constraints.any_of(np.array(both))

        return Units.of_bits(np.vectorize(joined, otypes=[int])(one.literals[0], other.literals[0]))

    def _shortcut(self, step, sums, bits):
        """Thresholds that depend on a bit: upper[0] where it is −1, upper[1] where it is +1."""
        negative, positive = (
            np.clip(np.broadcast_to(limits, sums.shape), sums.low, sums.high + 1)
            for limits in step.upper.astype(int)
        )
        literals = np.full(sums.shape, FALSE)
        for place, literal in enumerate(bits.literals[0].flat):
            constant, weights, others = sums.terms(place)
            limit = negative.flat[place]
            literals.flat[place] = self.constraints.at_least(
                np.append(weights, limit - positive.flat[place]),
                np.append(others, literal),
                limit - constant,
            )
        return Units.of_bits(literals)

    def _reshape(self, step, value):
        return value.reshaped((math.prod(value.shape),))

    # The scores

    def _won(self, step, sums):
        literals = {
            other: self._preferred(sums, other)
            for other in range(self._scores.shape[1])
            if other != self._label
        }
        return {other: literal for other, literal in literals.items() if literal != FALSE}

    def _preferred(self, sums, other):
        """The literal that is true exactly where a class has a better score than the label.

        Scores are rounded floats, so which products of the two classes win is read from all of
        them. Nearly always one linear constraint separates those that win from those that do not.
        Where none does, the pairs are told apart one by one.
        """
        own, its = (np.arange(*self._range(sums, c)) for c in (self._label, other))
        largest = len(self._scores) // 2
        own_scores = self._scores[own + largest, self._label]
        its_scores = self._scores[its + largest, other]
        # its[first[k]] is the least product that wins against own[k]. Of equal scores the first
        # class is the answer.
        side = "left" if other < self._label else "right"
        first = np.searchsorted(its_scores, own_scores, side=side)
        wins, loses = first < len(its), first > 0
        if not wins.any() or not loses.any():
            return TRUE if wins.any() else FALSE

        slopes = _slopes(own_scores, its_scores)
        value = lambda k, place: slopes[1] * its[place] - slopes[0] * own[k]  # noqa: E731
        most_loss = np.max(value(loses, first[loses] - 1))
        found = [self._difference(sums, other, slopes, most_loss + 1)]
        for k in np.flatnonzero(wins)[value(wins, first[wins]) <= most_loss]:
            both = [
                self._reaches(sums, other, its[first[k]]),
                -self._reaches(sums, self._label, own[k] + 1),
            ]
            found.append(self.constraints.at_least(np.ones(2, int), np.array(both), 2))
        return self.constraints.any_of(np.array(found))

    def _range(self, sums, unit):
        return sums.low.flat[unit], sums.high.flat[unit] + 1

    def _reaches(self, sums, unit, limit):
        constant, *terms = sums.terms(unit)
        return self.constraints.at_least(*terms, limit - constant)

    def _difference(self, sums, other, slopes, limit):
        """The literal of slopes[1]·(product of `other`) − slopes[0]·(that of the label) ≥ limit."""
        factors = (-slopes[0], slopes[1])
        parts = [sums.terms(unit) for unit in (self._label, other)]
        weights = np.concatenate([f * part[1] for f, part in zip(factors, parts, strict=True)])
        constant = sum(f * part[0] for f, part in zip(factors, parts, strict=True))
        literals = np.concatenate([part[2] for part in parts])
        return self.constraints.at_least(weights, literals, limit - constant)


def _slopes(*scores):
    """By how much each class's score rises with its product, in proportion, as whole numbers.

    They are as large as weights of constraints may be.
    """
    spans = [float(s[-1]) - float(s[0]) for s in scores]
    steps = [max(len(s) - 1, 1) for s in scores]
    total = sum(spans)
    if not 0 < total < math.inf:
        return [1] * len(scores)
    # Half, as rounding up adds at most one for each step.
    return [
        max(1, round(LARGEST / 2 * span / total / n)) for span, n in zip(spans, steps, strict=True)
    ]


def _cuts(program):
    """The pixels at which anything in the network changes, or None if there are too many."""
    found = set()
    for step in program.steps:
        if 0 in step.inputs:
            match step.kind:
                case "levels":
                    found |= set((np.flatnonzero(np.diff(step.table)) + 1).tolist())
                case "slices":
                    found |= set(step.thresholds.tolist())
                case _:
                    return None
    return np.array(sorted(found - {0}), int)


_MADE = {
    "pixels product": Encoding._pixels_product,
    "product": Encoding._product,
    "threshold": Encoding._threshold,
    "pool": Encoding._pool,
    "reshape": Encoding._reshape,
    "scores": Encoding._won,
    "levels": Encoding._round,
    "slices": Encoding._slice,
    "logic": Encoding._join,
    "shortcut": Encoding._shortcut,
}
