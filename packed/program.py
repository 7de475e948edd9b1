"""A trained network as a program of integer steps, and the file that holds it.

Here is no TensorFlow: whatever runs, proves or translates a packed network reads these steps.

Value 0 is the images, value k is what step k − 1 makes of earlier values. Images are
(rows, columns, channels), vectors (units,), and each value is of one kind:

- pixels: whole numbers from 0 to 255;
- integers: dot products;
- binary: −1 or +1; ternary: −1, 0 or +1;
- scores: floats, the end.
"""

import dataclasses
import json
import math
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from files import atomic_path
from utils import NetworkParams, frozen, is_whole, require, require_packable

# Of a file. Raised whenever its contents change their meaning: 3 has more kinds of steps than 2.
FORMAT = 3
# No product reaches these: thresholds of units whose output is constant.
NEVER, ALWAYS = np.iinfo(np.int32).max, np.iinfo(np.int32).min
# What batch norm adds to a variance.
EPSILON = 1e-3
# Below it float32 holds every whole number, so all sums are exact in any order.
EXACT = 2**24
HEADER_BYTES = 2**20


@dataclass(frozen=True)
class Value:
    """Kind and shape of what a step reads or makes, without the axis of images."""

    kind: str
    shape: tuple


# --- Steps ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step:
    """One operation.

    Attributes
    ----------
    name : str
        Of the layer that it comes from.
    inputs : (int, ...)
        Numbers of the values that it reads.
    """

    kind: ClassVar[str]
    # Of its fields, those that hold arrays of numbers.
    held: ClassVar[tuple] = ()
    # How many values it reads.
    arity: ClassVar[int] = 1

    name: str
    inputs: tuple

    def made_of(self, *values: Value) -> Value:
        """The `Value` made of those that it reads, or ValueError."""
        raise NotImplementedError

    def array_types(self, *values: Value) -> dict[str, tuple[type, tuple]]:
        """(dtype, shape) of each array that it holds, by name, if it reads `values`."""
        del values
        return {}

    def check_arrays(self) -> None:
        """Raise ValueError if numbers in the arrays make no sense; types are checked elsewhere."""


def _pair_of_sizes(pair):
    return isinstance(pair, tuple) and len(pair) == 2 and all(is_whole(n) and n > 0 for n in pair)


@dataclass(frozen=True, eq=False)
class Product(Step):
    """Dot products of ±1 or ternary values with ±1 or ternary weights: whole numbers.

    Attributes
    ----------
    kernel : (height, width, channels, units) or (inputs, units)
        Of a convolution of images, or of a matrix that a vector is multiplied with.
    strides : (int, int)
        Of rows and columns; (1, 1) of a matrix.
    padding : {'same', 'valid'}
        With zeros as TensorFlow pads, or none. Padded values count 0.
    ternary : bool
        Are some weights 0?
    sign, nonzero : ndarray of uint8, shape (ceil(weights / 8),)
        Bit planes of the weights, in the order of `kernel`, eight to a byte, the highest bit
        first: 1 where a weight is positive, and where it is not 0. `nonzero` is None of ±1.
    """

    kind = "product"
    held = ("sign", "nonzero")
    reads: ClassVar[tuple] = ("binary", "ternary")
    largest_input: ClassVar[int] = 1

    kernel: tuple
    strides: tuple = (1, 1)
    padding: str = "valid"
    ternary: bool = False
    sign: np.ndarray | None = field(default=None, repr=False)
    nonzero: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of_weights(
        cls, name: str, inputs: tuple[int, ...], weights: np.ndarray, **options: object
    ) -> Self:
        """A step from its weights, an array of −1, 0 and +1 in the shape of `kernel`."""
        planes = {"sign": np.packbits(weights > 0)}
        if not np.all(weights):
            planes["nonzero"] = np.packbits(weights != 0)
        ternary = "nonzero" in planes
        return cls(name, inputs, weights.shape, ternary=ternary, **planes, **options)

    @property
    def largest(self) -> int:
        """No product exceeds it in magnitude."""
        return math.prod(self.kernel[:-1]) * self.largest_input

    def plane(self, name: str) -> np.ndarray:
        """Bits of 'sign' or 'nonzero', uint8 in the shape of `kernel`."""
        if name == "nonzero" and not self.ternary:
            return np.ones(self.kernel, np.uint8)
        bits = np.unpackbits(getattr(self, name), count=math.prod(self.kernel))
        return bits.reshape(self.kernel)

    @property
    def weights(self) -> np.ndarray:
        """−1, 0 and +1, int8 in the shape of `kernel`."""
        return self.plane("nonzero").view(np.int8) * (2 * self.plane("sign").view(np.int8) - 1)

    def made_of(self, value: Value) -> Value:
        kernel = self.kernel
        require(value.kind in self.reads, f"{self.name} cannot multiply {value.kind}")
        require(
            isinstance(kernel, tuple)
            and len(kernel) in (2, 4)
            and all(is_whole(n) and n > 0 for n in kernel)
            and _pair_of_sizes(self.strides)
            and self.padding in ("same", "valid")
            and isinstance(self.ternary, bool),
            f"{self.name} has no proper kernel, strides or padding",
        )
        require(
            len(value.shape) == len(kernel) - 1 and value.shape[-1] == kernel[-2],
            f"a kernel of {kernel} does not fit values of {value.shape} in {self.name}",
        )
        require(self.largest < EXACT, f"{self.name} has too many inputs for exact float32 sums")
        positions = map(self._positions, value.shape[:-1], kernel[:-2], self.strides)
        shape = (*positions, kernel[-1])
        require(min(shape) > 0, f"the kernel of {self.name} is larger than its images")
        return Value("integers", shape)

    def _positions(self, size, taps, stride):
        return -(-size // stride) if self.padding == "same" else (size - taps) // stride + 1

    def array_types(self, value: Value) -> dict[str, tuple[type, tuple]]:
        shape = (-(-math.prod(self.kernel) // 8),)
        return dict.fromkeys(self.held if self.ternary else ("sign",), (np.uint8, shape))


@dataclass(frozen=True, eq=False)
class PixelsProduct(Product):
    """Dot products of the odd integers 2x − 255, x being pixels, with ±1 or ternary weights."""

    kind = "pixels product"
    reads = ("pixels",)
    largest_input = 255


@dataclass(frozen=True, eq=False)
class Levels(Step):
    """Each pixel x becomes the pixel table[x].

    Attributes
    ----------
    table : ndarray of uint8, shape (256,)
        It never falls.
    """

    kind = "levels"
    held = ("table",)

    table: np.ndarray | None = field(default=None, repr=False)

    def made_of(self, value: Value) -> Value:
        require(value.kind == "pixels", f"{self.name} rounds {value.kind} as pixels")
        return value

    def array_types(self, value: Value) -> dict[str, tuple[type, tuple]]:
        return {"table": (np.uint8, (256,))}

    def check_arrays(self) -> None:
        require((np.diff(self.table.astype(int)) >= 0).all(), f"the table of {self.name} falls")


@dataclass(frozen=True, eq=False)
class Threshold(Step):
    """+1 where a product is at least `upper`, −1 elsewhere; ternary: where it is at most `lower`.

    Attributes
    ----------
    ternary : bool
    upper, lower : ndarray of int32, shape (units,)
        `lower` is None of a binary one. A product is never as small as ALWAYS or as large as
        NEVER.
    """

    kind = "threshold"
    held = ("upper", "lower")

    ternary: bool = False
    upper: np.ndarray | None = field(default=None, repr=False)
    lower: np.ndarray | None = field(default=None, repr=False)

    def made_of(self, value: Value) -> Value:
        require(value.kind == "integers", f"{self.name} has a threshold on {value.kind}")
        require(isinstance(self.ternary, bool), f"{self.name} is neither binary nor ternary")
        return Value("ternary" if self.ternary else "binary", value.shape)

    def array_types(self, value: Value) -> dict[str, tuple[type, tuple]]:
        names = self.held if self.ternary else ("upper",)
        return dict.fromkeys(names, (np.int32, value.shape[-1:]))


@dataclass(frozen=True, eq=False)
class Slices(Step):
    """Each channel of pixels as several of ±1: +1 where a pixel is at least a threshold.

    Attributes
    ----------
    slices : int
        How many; those of a channel lie side by side.
    thresholds : ndarray of uint8, shape (slices,)
    """

    kind = "slices"
    held = ("thresholds",)

    slices: int = 1
    thresholds: np.ndarray | None = field(default=None, repr=False)

    def made_of(self, value: Value) -> Value:
        require(
            value.kind == "pixels" and len(value.shape) == 3,
            f"{self.name} cannot slice {value.kind} of {value.shape}",
        )
        fits = is_whole(self.slices) and 1 <= self.slices <= 255
        require(fits, f"{self.name} has no proper number of slices")
        rows, columns, channels = value.shape
        return Value("binary", (rows, columns, self.slices * channels))

    def array_types(self, value: Value) -> dict[str, tuple[type, tuple]]:
        del value
        return {"thresholds": (np.uint8, (self.slices,))}


@dataclass(frozen=True, eq=False)
class Logic(Step):
    """XNOR or OR of two images of bits, +1 being true.

    Attributes
    ----------
    operation : {'xnor', 'or'}
    """

    kind = "logic"
    arity = 2

    operation: str = "xnor"

    def made_of(self, value: Value, other: Value) -> Value:
        both = value == other and value.kind == "binary" and len(value.shape) == 3
        require(both, f"{self.name} cannot join {value} and {other}")
        require(self.operation in ("xnor", "or"), f"{self.name} has no proper operation")
        return value


@dataclass(frozen=True, eq=False)
class Shortcut(Step):
    """A threshold on products that depends on a bit: sign(batch norm + bit).

    It reads products and an image of bits of the same shape.

    Attributes
    ----------
    upper : ndarray of int32, shape (2, units)
        Thresholds as in `Threshold`, where the bit is −1 and where it is +1.
    """

    kind = "shortcut"
    held = ("upper",)
    arity = 2

    upper: np.ndarray | None = field(default=None, repr=False)

    def made_of(self, value: Value, other: Value) -> Value:
        kinds = value.kind, other.kind
        fits = kinds == ("integers", "binary") and value.shape == other.shape
        require(fits and len(value.shape) == 3, f"{self.name} cannot add {other} to {value}")
        return other

    def array_types(self, value: Value, other: Value) -> dict[str, tuple[type, tuple]]:
        del other
        return {"upper": (np.int32, (2, value.shape[-1]))}


@dataclass(frozen=True, eq=False)
class Pool(Step):
    """The largest of 2×2 values. Odd sizes round up: a window at the border has fewer."""

    kind = "pool"

    def made_of(self, value: Value) -> Value:
        require(
            value.kind in ("binary", "ternary") and len(value.shape) == 3,
            f"{self.name} cannot pool {value.kind} of {value.shape}",
        )
        rows, columns, channels = value.shape
        return Value(value.kind, (-(-rows // 2), -(-columns // 2), channels))


@dataclass(frozen=True, eq=False)
class Reshape(Step):
    """An image as one vector: rows, then columns, then channels."""

    kind = "reshape"

    def made_of(self, value: Value) -> Value:
        require(value.kind != "scores", f"{self.name} cannot reshape scores")
        return Value(value.kind, (math.prod(value.shape),))


@dataclass(frozen=True, eq=False)
class Scores(Step):
    """The output's batch norm, in float32 and in exactly this order:

    (product·scale − moving_mean)·(moving_variance + EPSILON)^(−1/2) + beta.

    Attributes
    ----------
    scale : float
        1, or 1/255 where the products are of pixels.
    moving_mean, moving_variance, beta : ndarray of float32, shape (units,)
    """

    kind = "scores"
    held = ("moving_mean", "moving_variance", "beta")

    scale: float = 1.0
    moving_mean: np.ndarray | None = field(default=None, repr=False)
    moving_variance: np.ndarray | None = field(default=None, repr=False)
    beta: np.ndarray | None = field(default=None, repr=False)

    def made_of(self, value: Value) -> Value:
        require(
            value.kind == "integers" and len(value.shape) == 1,
            f"{self.name} cannot make scores of {value.kind} of {value.shape}",
        )
        require(self.scale in (1.0, 1 / 255), f"{self.name} has the scale {self.scale!r}")
        return Value("scores", value.shape)

    def array_types(self, value: Value) -> dict[str, tuple[type, tuple]]:
        return dict.fromkeys(self.held, (np.float32, value.shape))

    def check_arrays(self) -> None:
        finite = all(np.isfinite(getattr(self, name)).all() for name in self.held)
        require(finite, f"the batch norm of {self.name} holds NaN or infinity")
        require((self.moving_variance >= 0).all(), f"a variance of {self.name} is negative")


_STEPS = (
    *(Levels, Slices, PixelsProduct, Product, Threshold, Shortcut, Logic),
    *(Pool, Reshape, Scores),
)
KINDS = {kind.kind: kind for kind in _STEPS}


def _values(in_dim, out_dim, steps):
    """The `Value` of the images and of each step, or ValueError where they do not fit."""
    require(
        isinstance(in_dim, tuple)
        and len(in_dim) == 3
        and all(is_whole(n) and n > 0 for n in in_dim),
        f"in_dim must be (rows, columns, channels), not {in_dim!r}",
    )
    values = [Value("pixels", in_dim)]
    for step in steps:
        numbers = step.inputs
        require(
            isinstance(step.name, str)
            and isinstance(numbers, tuple)
            and len(numbers) == step.arity
            and all(is_whole(n) and 0 <= n < len(values) for n in numbers),
            f"the step {step.name!r} reads {numbers!r}, not an earlier value",
        )
        values.append(step.made_of(*(values[number] for number in numbers)))
    ends = is_whole(out_dim) and values[-1] == Value("scores", (out_dim,))
    require(ends, f"it does not end in {out_dim!r} scores")
    return tuple(values)


def _array_types(steps, values):
    """(dtype, shape) of all arrays, by their names in a file."""
    return {
        _array_name(name, number): kind
        for number, step in enumerate(steps)
        for name, kind in step.array_types(*(values[n] for n in step.inputs)).items()
    }


def _array_name(name, number):
    return f"{name}_{number}"


# --- The program ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Program:
    """A packed network.

    Parameters
    ----------
    in_dim : (rows, columns, channels)
        Of an image.
    out_dim : int
        Number of classes.
    steps : sequence of Step
        Step k makes value k + 1 of earlier values; the last one makes the scores.
    about : dict
        Anything that JSON holds, for readers: nothing depends on it.

    Attributes
    ----------
    values : tuple of Value
        What each number stands for, the images first.

    Raises
    ------
    ValueError
        If the steps do not fit each other, or an array does not fit its step.
    """

    in_dim: tuple
    out_dim: int
    steps: tuple
    about: dict = field(default_factory=dict)
    values: tuple = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "in_dim", frozen(self.in_dim))
        object.__setattr__(self, "steps", tuple(self.steps))
        values = _values(self.in_dim, self.out_dim, self.steps)
        object.__setattr__(self, "values", values)
        expected = _array_types(self.steps, values)
        found = {name: (array.dtype, array.shape) for name, array in self.arrays().items()}
        require(found == expected, "its arrays do not fit its steps")
        for step in self.steps:
            step.check_arrays()

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the steps, by their names in a file: that of the field, then the step."""
        return {
            _array_name(name, number): getattr(step, name)
            for number, step in enumerate(self.steps)
            for name in step.held
            if getattr(step, name) is not None
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write the program to `path`, whole or not at all.

        Parameters
        ----------
        path : path-like
            A zip archive of `.npy` members: `header`, which is JSON, and the arrays, none of them
            compressed.
        """
        header = {
            "format": FORMAT,
            "in_dim": self.in_dim,
            "out_dim": self.out_dim,
            "about": self.about,
            "steps": [
                {"kind": step.kind}
                | {f.name: getattr(step, f.name) for f in _plain_fields(type(step))}
                for step in self.steps
            ],
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            text = np.frombuffer(json.dumps(header).encode(), np.uint8)
            np.savez(file, header=text, **self.arrays())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Program":
        """Open what `save` wrote, now or in an earlier format.

        Only arrays of numbers are read, each of the type and shape that the steps demand; nothing
        is unpickled. What is read into memory is no larger than the file.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        Program

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`.
        ValueError
            If it is not such a file, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no packed network {path}")
        try:
            with zipfile.ZipFile(path) as archive:
                return _read_program(archive, path.stat().st_size)
        # Whatever goes wrong while a damaged file is taken apart means the same to the reader.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged or no packed network: {reason}") from None


def _plain_fields(kind):
    return [f for f in dataclasses.fields(kind) if f.name not in kind.held]


# --- Reading ----------------------------------------------------------------------------------


def _read_program(archive, file_bytes):
    members = {info.filename: info for info in archive.infolist()}
    _check_sizes(archive.infolist(), file_bytes)
    require("header.npy" in members, "it has no header")
    header_info = members.pop("header.npy")
    require(header_info.file_size <= HEADER_BYTES, "its header is larger than 1 MB")
    header = json.loads(_read_array(archive, header_info, np.uint8).tobytes())
    require(header["format"] in (1, 2, FORMAT), f"its format is {header['format']!r}")
    # Steps without their arrays first, as they tell which arrays there must be.
    read = _steps_of_format_1 if header["format"] == 1 else _steps_in
    in_dim, steps, stored, about = read(header)
    types = _array_types(steps, _values(in_dim, header["out_dim"], steps))
    expected = {f"{stored(name)}.npy": (name, *kind) for name, kind in types.items()}
    require(members.keys() == expected.keys(), "its arrays do not fit its steps")
    arrays = {
        name: _read_array(archive, members[member], dtype, shape)
        for member, (name, dtype, shape) in expected.items()
    }
    steps = [
        dataclasses.replace(
            step,
            **{n: arrays[_array_name(n, i)] for n in step.held if _array_name(n, i) in arrays},
        )
        for i, step in enumerate(steps)
    ]
    return Program(in_dim, header["out_dim"], steps, about)


def _check_sizes(members, file_bytes):
    """Raise ValueError if the archive would unpack to more than it is."""
    plain = all(info.compress_type == zipfile.ZIP_STORED for info in members)
    require(plain, "its arrays are compressed")
    require(sum(info.file_size for info in members) <= file_bytes, "its arrays exceed the file")
    require(len({info.filename for info in members}) == len(members), "it holds a name twice")


def _read_array(archive, info, dtype, shape=None):
    """A member of the archive, its type, shape and check sum tested; of any length without shape.

    The type and shape that the member claims are compared before its numbers are read.
    """
    with archive.open(info) as file:
        require(np.lib.format.read_magic(file) == (1, 0), f"{info.filename} has another format")
        claimed = np.lib.format.read_array_header_1_0(file)
        length = info.file_size - file.tell()
        shape, dtype = (length,) if shape is None else shape, np.dtype(dtype).newbyteorder("<")
        fits = claimed == (shape, False, dtype) and length == math.prod(shape) * dtype.itemsize
        require(fits, f"{info.filename} holds no {dtype} of {shape}")
        return np.frombuffer(file.read(), dtype).reshape(shape)


def _steps_in(header):
    """in_dim, the steps without their arrays, the name of each array in the file, and `about`."""
    steps = []
    for entry in header["steps"]:
        kind = KINDS[entry.pop("kind")]
        names = {f.name for f in _plain_fields(kind)}
        require(entry.keys() == names, f"a step {kind.kind} has {', '.join(entry)}")
        steps.append(kind(**{name: frozen(value) for name, value in entry.items()}))
    require(isinstance(header["about"], dict), "what it says about itself is no dict")
    return frozen(header["in_dim"]), steps, lambda name: name, header["about"]


def _steps_of_format_1(header):
    """The same of a network that is described by its `NetworkParams`, with arrays by layer."""
    params = NetworkParams(**header["network_params"])
    require_packable(params)
    in_dim, ternary, steps, layers = frozen(header["in_dim"]), params.levels == 3, [], []

    def add(kind, layer, suffix="", **fields):
        steps.append(kind(f"{names[layer]}{suffix}", (len(steps),), **fields))
        layers.append(layer)

    convs = len(params.conv)
    names = [f"conv_{i + 1}" for i in range(convs)]
    names += [f"fc_{i + 1}" for i in range(params.layers - convs)]
    for layer, shape in enumerate(params.layer_shapes(in_dim, header["out_dim"])):
        if layer == convs:
            add(Reshape, layer, "_flat")
        product = PixelsProduct if layer == 0 else Product
        if layer < convs:
            size = params.filter_size
            kernel = (size, size, shape[0] // size**2, shape[1])
            add(product, layer, kernel=kernel, padding="same", ternary=ternary)
        else:
            add(product, layer, kernel=shape, ternary=ternary)
        if layer < params.layers - 1:
            add(Threshold, layer, "_norm", ternary=ternary)
        if layer < convs and params.max_pool[layer]:
            add(Pool, layer, "_pool")
    add(Scores, params.layers - 1, "_norm", scale=1 / 255 if params.layers == 1 else 1.0)

    def stored(name):
        name, number = name.rsplit("_", 1)
        return name if name in Scores.held else f"{name}_{layers[int(number)]}"

    return in_dim, steps, stored, {"network_params": header["network_params"]}
