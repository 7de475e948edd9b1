"""A packed program as C99: `network.h`, `network.c` and `main.c`.

The C code counts the same whole numbers as `packed.run`, and its scores go through the float
operations of `Scores` one by one, so they are equal to those of the float network bit for bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from packed.program import (
    ALWAYS,
    EPSILON,
    NEVER,
    Levels,
    Logic,
    Pool,
    Product,
    Program,
    Reshape,
    Scores,
    Shortcut,
    Slices,
    Threshold,
)
from utils import require

FILES = ("network.h", "network.c", "main.c")
# Units whose weights lie side by side.
LANES = 16
WORD_BITS = 64
TEMPLATES = Path(__file__).parent / "templates"


def sources(program: Program, about: Sequence[str] = ()) -> dict[str, str]:
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
    """One call of a C function: a step, and the threshold that reads its products.

    Attributes
    ----------
    reads, makes : tuple of int, int
        Numbers of values.
    """

    step: object
    reads: tuple
    makes: int
    threshold: object = None


def _stages(program):
    """The steps that lead to the scores, in order, each product with its threshold."""
    needed = {len(program.steps)}
    for number in range(len(program.steps), 0, -1):
        needed.update(program.steps[number - 1].inputs if number in needed else ())
    products, stages = {}, []
    for number, step in enumerate(program.steps, 1):
        if number not in needed:
            continue
        known = (Levels, Product, Slices, Threshold, Shortcut, Logic, Pool, Reshape, Scores)
        require(isinstance(step, known), f"cannot write C: the step {step.name} is a {step.kind}")
        if isinstance(step, Product):
            products[number] = _Stage(step, step.inputs, number)
        elif isinstance(step, Threshold | Shortcut):
            read, *bits = step.inputs
            why = f"cannot write C: {step.name} is no threshold right after a product"
            require(read in products, why)
            product = products[read].step
            stages.append(_Stage(product, (*product.inputs, *bits), number, step))
        else:
            if step.inputs[0] in products:
                ends = isinstance(step, Scores | Reshape)
                require(ends, f"cannot write C: {step.name} reads whole numbers")
                stages.append(products[step.inputs[0]])
            stages.append(_Stage(step, step.inputs, number))
    return stages


def _words(value):
    """64-bit words that hold a value of bits."""
    *positions, channels = value.shape
    planes = 2 if value.kind == "ternary" else 1
    return planes * math.prod(positions) * -(-channels // WORD_BITS)


def _placed(sizes, lives):
    """Where values lie in one memory: the largest first, each as far down as it fits.

    Parameters
    ----------
    sizes : dict
        Words, by value.
    lives : dict
        (first, last) stage in which a value is there.

    Returns
    -------
    dict
        Offset by value.
    """
    places = {}
    for value in sorted(sizes, key=lambda v: (-sizes[v], lives[v])):
        first, last = lives[value]
        beside = [v for v in places if lives[v][0] <= last and first <= lives[v][1]]
        taken = sorted((places[v], places[v] + sizes[v]) for v in beside)
        place = 0
        for start, end in taken:
            if place + sizes[value] <= start:
                break
            place = max(place, end)
        places[value] = place
    return places


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
        kinds = {type(stage.step) for stage in self.stages}
        return {
            "lanes": LANES,
            "flavours": self.flavours,
            "pools": Pool in kinds,
            "slices": Slices in kinds,
            "joins": Logic in kinds,
            "shortcuts": any(isinstance(stage.threshold, Shortcut) for stage in self.stages),
            "flattens": any(call.startswith("flatten") for call in self.calls),
            "tables": self.tables,
            "products": self.products,
            "scaled": self.scores.scale != 1,
            "scale": _float(self.scores.scale),
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
        """Where each value lies. One that a step leaves as it is has the place of what it was."""
        values, same = self.program.values, {}
        sizes, lives = {}, {}
        for turn, stage in enumerate(self.stages):
            reads = [same.get(number, number) for number in stage.reads]
            for number in reads:
                if number in lives:
                    lives[number] = lives[number][0], turn
            makes = values[stage.makes]
            packed = self._is_packed(values[stage.reads[0]])
            if isinstance(stage.step, Levels) or (isinstance(stage.step, Reshape) and packed):
                same[stage.makes] = reads[0]
            elif makes.kind in ("binary", "ternary"):
                sizes[stage.makes], lives[stage.makes] = _words(makes), (turn, turn)
        places = _placed(sizes, lives)
        self.memory = max((places[v] + sizes[v] for v in places), default=0)
        self._places = {0: "image"}
        for number, words in places.items():
            self._places[number] = f"memory + WORDS({words * WORD_BITS})" if words else "memory"
        for number, read in same.items():
            self._places[number] = self._places.get(read, "products")

    @staticmethod
    def _is_packed(value):
        """Have the words of a value no unused bits between its positions?"""
        return (
            value.kind in ("pixels", "integers")
            or len(value.shape) == 1
            or value.shape[-1] % WORD_BITS == 0
            or value.shape[:2] == (1, 1)
        )

    def _add(self, stage):
        reads = [self._places.get(number, "products") for number in stage.reads]
        made = self._places.get(stage.makes, "products")
        value = self.program.values[stage.reads[0]]
        match stage.step:
            case Levels():
                self.levels = stage.step.table[self.levels]
            case Product():
                self._add_product(stage, value, reads, made)
            case Slices():
                rows, columns, channels = value.shape
                table = self._add_table("slice_limits", "uint8_t", stage.step.thresholds)
                sizes = f"{rows * columns}, {channels}, {stage.step.slices}"
                self.calls.append(f"slice({sizes}, {table}, image, {made})")
            case Logic():
                *positions, channels = value.shape
                sizes = f"{math.prod(positions)}, {channels}, {int(stage.step.operation == 'or')}"
                self.calls.append(f"join({sizes}, {', '.join(reads)}, {made})")
            case Pool():
                rows, columns, channels = value.shape
                sizes = f"{rows}, {columns}, {channels}, {int(value.kind == 'ternary')}"
                self.calls.append(f"pool({sizes}, {reads[0]}, {made})")
            case Reshape() if made != reads[0]:
                self._add_flatten(value, reads[0], made)

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

    def _add_product(self, stage, value, reads, made):
        step, number = stage.step, len(self.products) + 1
        name, inputs = f"product_{number}", value.kind
        flavour = inputs, "ternary" if step.ternary else "binary"
        if flavour not in self.flavours:
            self.flavours.append(flavour)
        shape = _shape(step, value.shape, self.program.values[stage.makes].shape)
        self.products.append({"name": name, **shape, **self._add_limits(stage, number)})
        for plane in step.held:
            table = "NULL"
            if getattr(step, plane) is not None:
                bits = step.plane(plane)
                if inputs == "pixels":  # What a kernel sees at a position lies side by side.
                    bits = bits.reshape(-1, step.kernel[-1])
                table = self._add_table(f"{plane}_{number}", "word", _bit_words(bits))
            self.calls.append(f"weights.{plane} = {table}")
        read, *bits = reads
        if isinstance(stage.threshold, Shortcut):
            self.calls.append(f"shortcut = {bits[0]}")
        if inputs == "pixels":
            self.window = math.prod(step.kernel[:-1])
            read = f"{read}, pixels, planes"
        self.calls.append(f"multiply_{'_'.join(flavour)}(&{name}, weights, {read}, {made})")

    def _add_limits(self, stage, number):
        found, threshold = {"upper": "NULL", "lower": "NULL", "upper_off": "NULL"}, stage.threshold
        limits = {}
        if isinstance(threshold, Shortcut):
            limits = {"upper_off": threshold.upper[0], "upper": threshold.upper[1]}
        elif threshold:
            limits = {"upper": threshold.upper, "lower": threshold.lower}
        for name, values in limits.items():
            if values is not None:
                # No lane beyond the units sets a bit.
                values = _padded(values, 0, LANES, ALWAYS if name == "lower" else NEVER)
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


def _shape(step, reads, makes):
    """Sizes of a product, vectors being images of one position."""
    rows, columns, channels = reads if len(reads) == 3 else (1, 1, *reads)
    out = makes if len(makes) == 3 else (1, 1, *makes)
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


def inverse_deviation(scores: Scores) -> np.ndarray:
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
