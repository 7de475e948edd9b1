"""A packed program as C99: `network.h`, `network.c` and `main.c`.

The C code counts the same whole numbers as `packed.run`, and its scores go through the float
operations of `Scores` one by one, so they are equal to those of the float network bit for bit.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from packed.program import (
    ALWAYS,
    EPSILON,
    NEVER,
    Levels,
    PixelsProduct,
    Pool,
    Product,
    Reshape,
    Scores,
    Threshold,
)
from utils import require

FILES = ("network.h", "network.c", "main.c")
# Units whose weights lie side by side.
LANES = 16
WORD_BITS = 64
TEMPLATES = Path(__file__).parent / "templates"


def sources(program, about=()):
    """The C files of a program.

    Parameters
    ----------
    program : packed.program.Program
    about : sequence of str
        Lines that tell readers what the network is.

    Returns
    -------
    dict
        Text by name: 'network.h', 'network.c' and 'main.c'.

    Raises
    ------
    ValueError
        If the program has a step that the C code lacks; the message names it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    rows, columns, channels = program.in_dim
    known = {
        "about": [_in_comment(line) for line in about] or ["A network of bits."],
        "rows": rows,
        "columns": columns,
        "channels": channels,
        "classes": program.out_dim,
        **_Translation(program).known(),
    }
    return {name: environment.get_template(f"{name}.jinja").render(known) for name in FILES}


def _in_comment(line):
    line = "".join(c if c.isprintable() else " " for c in str(line))
    return line.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")


# --- Which steps, in which memory -------------------------------------------------------------


@dataclass
class _Stage:
    """One call of a C function: a step, and the threshold or the scores that read its products."""

    step: object
    reads: object
    makes: object
    threshold: object = None


def _stages(program):
    """The steps that lead to the scores, in order, each product with its threshold."""
    steps, number = [], len(program.steps)
    while number:
        step = program.steps[number - 1]
        known = type(step) in (Levels, PixelsProduct, Product, Threshold, Pool, Reshape, Scores)
        require(known, f"cannot write C: the step {step.name} is a {step.kind}")
        (read,) = step.inputs
        steps.insert(0, (step, program.values[read], program.values[number]))
        number = read
    stages = []
    for step, reads, makes in steps:
        if isinstance(step, Threshold):
            last = stages[-1]
            follows = isinstance(last.step, Product) and last.threshold is None
            require(follows, f"cannot write C: {step.name} is no threshold right after a product")
            last.threshold, last.makes = step, makes
        else:
            stages.append(_Stage(step, reads, makes))
    for stage, after in itertools.pairwise(stages):
        numbers = isinstance(stage.step, Product) and stage.threshold is None
        ends = isinstance(after.step, Scores | Reshape) and after.makes.kind != "binary"
        require(not numbers or ends, f"cannot write C: {after.step.name} reads whole numbers")
    return stages


def _words(value):
    """64-bit words that hold a value of bits."""
    *positions, channels = value.shape
    planes = 2 if value.kind == "ternary" else 1
    return planes * math.prod(positions) * -(-channels // WORD_BITS)


class _Translation:
    """What the template of `network.c` has to know."""

    def __init__(self, program):
        self.program = program
        self.tables, self.products, self.calls = [], [], []
        self.flavours, self.window, self.levels = [], 0, np.arange(256)
        self.stages = _stages(program)
        self.scores = self.stages.pop().step
        self._place_values()
        for stage in self.stages:
            self._add(stage)
        self._add_scores()

    def known(self):
        """The template's variables."""
        scale = self.scores.scale
        steps = [stage.step for stage in self.stages]
        return {
            "lanes": LANES,
            "flavours": self.flavours,
            "pools": any(isinstance(step, Pool) for step in steps),
            "flattens": any(call.startswith("flatten") for call in self.calls),
            "tables": self.tables,
            "products": self.products,
            "scaled": scale != 1,
            "scale": _float(scale),
            "levels": self._levels(),
            "window": self.window,
            "memory_bits": self.memory * WORD_BITS,
            "calls": self.calls,
        }

    def _levels(self):
        if np.array_equal(self.levels, np.arange(256)):
            return ""
        return _listed("uint8_t", self.levels)

    def _place_values(self):
        """Where in the memory each stage reads and writes: at its two ends in turn."""
        made = [stage for stage in self.stages if self._takes_memory(stage)]
        sizes = [0, *(_words(stage.makes) for stage in made), 0]
        self.memory = max(sum(pair) for pair in itertools.pairwise(sizes))
        self._places = {}
        for turn, (stage, size) in enumerate(zip(made, sizes[1:], strict=False)):
            words = self.memory - size if turn % 2 else 0
            self._places[id(stage)] = f"memory + WORDS({words * WORD_BITS})" if words else "memory"

    def _takes_memory(self, stage):
        if stage.makes.kind in ("pixels", "integers"):
            return False
        return not (isinstance(stage.step, Reshape) and self._is_packed(stage.reads))

    @staticmethod
    def _is_packed(value):
        """Do the words of a value have no unused bits between its positions?"""
        return (
            len(value.shape) == 1 or value.shape[-1] % WORD_BITS == 0 or value.shape[:2] == (1, 1)
        )

    def _add(self, stage):
        read = self._calls_input()
        made = self._places.get(id(stage))
        match stage.step:
            case Levels():
                self.levels = stage.step.table[self.levels]
            case Product():
                self._add_product(stage, read, made or "products")
            case Pool():
                rows, columns, channels = stage.reads.shape
                ternary = int(stage.reads.kind == "ternary")
                self.calls.append(f"pool({rows}, {columns}, {channels}, {ternary}, {read}, {made})")
            case Reshape() if made:
                self._add_flatten(stage.reads, read, made)
        if made:
            self._last = made

    def _calls_input(self):
        return getattr(self, "_last", "image")

    def _add_flatten(self, value, read, made):
        *positions, channels = value.shape
        count = math.prod(positions)
        planes = 2 if value.kind == "ternary" else 1
        length = -(-count * channels // WORD_BITS) * WORD_BITS
        for plane in range(planes):
            ends = [
                f"{end} + WORDS({plane * bits})" if plane else end
                for end, bits in ((read, _words(value) // planes * WORD_BITS), (made, length))
            ]
            self.calls.append(f"flatten({count}, {channels}, {', '.join(ends)})")

    # Products

    def _add_product(self, stage, read, made):
        step, number = stage.step, len(self.products) + 1
        name, inputs = f"product_{number}", stage.reads.kind
        flavour = inputs, "ternary" if step.ternary else "binary"
        if flavour not in self.flavours:
            self.flavours.append(flavour)
        self.products.append({"name": name, **_shape(stage), **self._add_limits(stage, number)})
        for plane in step.held:
            table = "NULL"
            if getattr(step, plane) is not None:
                bits = step.plane(plane)
                if inputs == "pixels":  # What a kernel sees at a position lies side by side.
                    bits = bits.reshape(-1, step.kernel[-1])
                table = self._add_table(f"{plane}_{number}", "word", _bit_words(bits))
            self.calls.append(f"weights.{plane} = {table}")
        if inputs == "pixels":
            self.window = math.prod(step.kernel[:-1])
            read = f"{read}, pixels, planes"
        self.calls.append(f"multiply_{'_'.join(flavour)}(&{name}, weights, {read}, {made})")

    def _add_limits(self, stage, number):
        found = {"upper": "NULL", "lower": "NULL"}
        if stage.threshold:
            for name, never in (("upper", NEVER), ("lower", ALWAYS)):
                values = getattr(stage.threshold, name)
                if values is not None:
                    # No lane beyond the units sets a bit.
                    values = _padded(values, 0, LANES, never)
                    found[name] = self._add_table(f"{name}_{number}", "int32_t", values)
        return found

    def _add_scores(self):
        constants = {
            "moving_mean": self.scores.moving_mean,
            "inverse_deviation": inverse_deviation(self.scores),
            "beta": self.scores.beta,
        }
        for name, values in constants.items():
            self._add_table(name, "float", values)

    def _add_table(self, name, kind, values):
        self.tables.append({"name": name, "type": kind, "text": _listed(kind, values)})
        return name


def _shape(stage):
    step = stage.step
    rows, columns, channels = (
        stage.reads.shape
        if len(stage.reads.shape) == 3
        else (
            1,
            1,
            *stage.reads.shape,
        )
    )
    out = stage.makes.shape if len(stage.makes.shape) == 3 else (1, 1, *stage.makes.shape)
    height, width = step.kernel[:-2] or (1, 1)
    top, left = (
        max(0, (count - 1) * stride + taps - size) // 2 if step.padding == "same" else 0
        for count, stride, taps, size in zip(
            out, step.strides, (height, width), (rows, columns), strict=False
        )
    )
    return {
        "rows": rows,
        "columns": columns,
        "channels": channels,
        "height": height,
        "width": width,
        "row_stride": step.strides[0],
        "column_stride": step.strides[1],
        "top": top,
        "left": left,
        "out_rows": out[0],
        "out_columns": out[1],
        "units": out[2],
    }


def inverse_deviation(scores):
    """The factor of each unit's batch norm, float32: (moving_variance + EPSILON)^(−1/2)."""
    import tensorflow as tf

    # TensorFlow's own reciprocal square root, whose last bit may not be the C library's.
    return tf.math.rsqrt(tf.constant(scores.moving_variance) + EPSILON).numpy()


# --- Tables -----------------------------------------------------------------------------------


def _padded(array, axis, multiple, value=0):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, widths, constant_values=value)


def _bit_words(plane):
    """Words of a plane of weights, uint64 of shape (groups, taps, words, LANES)."""
    *taps, channels, units = plane.shape
    plane = plane.reshape(math.prod(taps), channels, units)
    plane = _padded(_padded(plane, 1, WORD_BITS), 2, LANES)
    bits = plane.transpose(0, 2, 1)  # taps, units, channels
    packed = np.packbits(bits, axis=-1, bitorder="little")
    words = np.ascontiguousarray(packed).view("<u8")
    words = words.reshape(len(bits), -1, LANES, words.shape[-1])
    return words.transpose(1, 0, 3, 2)


def _listed(kind, values):
    """Numbers as C writes them, some to a line."""
    each, to_a_line = {
        "word": (_word, 4),
        "int32_t": (_limit, 12),
        "uint8_t": (str, 16),
        "float": (_float, 4),
    }[kind]
    texts = [each(value) for value in np.ravel(values).tolist()]
    lines = (texts[i : i + to_a_line] for i in range(0, len(texts), to_a_line))
    return ",\n".join(f"    {', '.join(line)}" for line in lines)


def _word(value):
    return f"W({value >> 32:08x}, {value & 0xFFFFFFFF:08x})"


def _limit(value):
    return {NEVER: "INT32_MAX", ALWAYS: "INT32_MIN"}.get(value, str(value))


def _float(value):
    """A float32 in hexadecimal: exactly this one."""
    return f"{float(np.float32(value)).hex()}f"
