"""What needs no TensorFlow: parameters, one-line errors, the environment."""

import argparse
import contextlib
import dataclasses
import itertools
import math
import numbers
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

BAD_INPUT = 2
INTERRUPTED = 130  # What a shell reports after Ctrl-C.

# Read when TensorFlow is imported. It leaves oneDNN's kernels off on processors without AVX-512,
# where they still halve the time of a training step.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Of several machines each logs the loss of another in a dozen lines, where one says it all.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")


@contextlib.contextmanager
def one_line_errors(program: str, interrupted: str = "interrupted") -> Iterator[None]:
    """End the process with one line and exit code 2 when the block meets bad input.

    Bad input is a ValueError or an OSError (missing or unreadable file, full disk). Ctrl-C and
    SIGTERM end it with the line `interrupted` and exit code 130. Everything else is a fault of the
    program and keeps its traceback.
    """
    _make_output_safe()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
        # Whether the output could be written shows only now.
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BAD_INPUT) from None
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        # A path of thousands of characters would hide what is wrong with it.
        message = re.sub(r"\S{200,}", lambda word: f"{word[0][:60]}…{word[0][-20:]}", message)
        print(f"{program}: error: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print(f"\n{interrupted}")
        raise SystemExit(INTERRUPTED) from None


def _make_output_safe():
    """Let no character that the terminal lacks, and no closed output, end a long run."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _interrupt(signal_number, frame):
    raise KeyboardInterrupt


def frozen(value: object) -> object:
    """Tuples all the way down, and Python's numbers in place of NumPy's."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def number_from(text: str) -> float:
    """A float from decimals or a fraction such as 8/255, for a command line."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"{text[:60]} is no number") from None


def radius_of(epsilon: float) -> int:
    """How many of 255 grey levels are within `epsilon` on the scale from 0 to 1.

    Raises
    ------
    ValueError
        If `epsilon` is not a number from 0 to 1.
    """
    number = math.isfinite(epsilon) and 0 <= epsilon <= 1
    require(number, f"epsilon must be a number from 0 to 1, not {epsilon}")
    return math.floor(round(epsilon * 255, 6))  # 8/255 as a float may lie just below it.


def _require_sizes(name, sizes):
    require(isinstance(sizes, tuple), f"{name} must be a list of layer sizes, not {sizes!r}")
    require(
        all(is_whole(size) and size >= 1 for size in sizes),
        f"{name} must hold whole numbers of at least 1, not {list(sizes)}",
    )


def _require_number(name, value, low, high=math.inf, open_low=False):
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and (low < value if open_low else low <= value)
    bound = f"{'above' if open_low else 'at least'} {low}"
    bound += "" if high == math.inf else f" and at most {high}"
    require(inside and value <= high, f"{name} must be a number {bound}, not {value!r}")


PAPER_SIZES = {
    "conv": (128, 128, 256, 256, 512, 512),
    "max_pool": (False, True, False, True, False, True),
    "fc": (1024, 1024),
}
RECURRENT_SIZES = {"conv": (), "max_pool": (), "fc": (128,)}

# So many pixels, evenly spaced from 0 to 255, are whole numbers.
PIXEL_LEVELS = tuple(n for n in range(2, 87) if 255 % (n - 1) == 0)


def require_pixel_levels(levels: int | None) -> None:
    require(
        levels is None or (is_whole(levels) and levels in PIXEL_LEVELS),
        f"input_levels must be one of {', '.join(map(str, PIXEL_LEVELS))}, not {levels!r}",
    )


# `networks.NETWORKS` builds them.
NETWORK_NAMES = ("paper", "residual", "boolnet", "gru", "lstm")
RECURRENT = ("gru", "lstm")


@dataclass(frozen=True)
class NetworkParams:
    """What the network is. The defaults are the paper's CIFAR-10 network.

    Parameters
    ----------
    conv : sequence of int
        Filters of each convolutional layer; may be empty. A recurrent network has none.
    filter_size : int
        Height and width of every filter.
    input_levels : int, optional
        Round pixels to that many evenly spaced ones, black and white among them: 2, 4, 6, 16, 18,
        52 or 86, whose distances are whole numbers of 255.
    stride : int or sequence of int
        Of rows and columns in each convolutional layer: one for all, or one per layer.
    max_pool : sequence of bool
        One entry per convolutional layer: is it followed by 2×2 max pooling?
    fc : sequence of int
        Units of each fully connected layer but the output, or of each recurrent layer: 128.
    bin_weights, bin_acts : bool or sequence of bool
        Quantize weights and activations? One for all layers, or one per layer: convolutional,
        fully connected, output. The output's activation is never quantized, nor are the states
        of recurrent layers.
    levels : {2, 3}
        Binary or ternary.
    threshold : float, optional
        Of the ternary quantizer, for weights and activations alike. By default the paper's 0.02
        with three levels, unless `threshold_sigma` is given.
    threshold_sigma : float, optional
        Instead of `threshold`: in units of the standard deviation of each layer's latent weights,
        and of 1 for batch-normed activations.
    activation_threshold : float, optional
        Another one for batch-normed activations, whose standard deviation is 1.
    rotate_first : {"random", "pca", "zca"}, optional
        Quantize the first layer's weights after a rotation of its patches, a random one or to
        their principal axes, or for whitened patches.
    network : {'paper', 'residual', 'boolnet', 'gru', 'lstm'}
        Which network of `networks.NETWORKS` it is.
    quantizer : str, optional
        A quantizer registered with `graph_ops.register_quantizer` in place of the sign.
    slices : int, optional
        Thresholds of each pixel that the first layer of 'boolnet' reads, by default 8.

    Raises
    ------
    ValueError
        If a value is out of range or two of them contradict each other.
    """

    conv: tuple | None = None
    filter_size: int = 3
    stride: int | tuple = 1
    max_pool: tuple | None = None
    fc: tuple | None = None
    bin_weights: bool | tuple = True
    bin_acts: bool | tuple = True
    levels: int = 2
    threshold: float | None = None
    threshold_sigma: float | None = None
    activation_threshold: float | None = None
    rotate_first: str | None = None
    quantizer: str | None = None
    network: str = "paper"
    slices: int | None = None
    input_levels: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, frozen(getattr(self, field.name)))
        self._check_network()
        _require_sizes("conv", self.conv)
        _require_sizes("fc", self.fc)
        require(
            is_whole(self.filter_size) and self.filter_size >= 1,
            f"filter_size must be a whole number of at least 1, not {self.filter_size!r}",
        )
        self._check_stride()
        self._check_switches()
        self._check_thresholds()
        require(
            self.rotate_first in (None, "random", "pca", "zca"),
            f"rotate_first must be random, pca or zca, not {self.rotate_first!r}",
        )
        require(not self.rotate_first or self.conv, "rotate_first needs a convolutional layer")
        require(
            self.quantizer is None or (isinstance(self.quantizer, str) and self.quantizer),
            f"quantizer must be the name of one, not {self.quantizer!r}",
        )
        require(
            not self.quantizer or self.levels == 2,
            "quantizer and levels exclude each other: a quantizer of one's own has its own levels",
        )
        require(
            not self.quantizer or self.kind != "continuous",
            "quantizer and continuous exclude each other: nothing would be quantized",
        )
        only_bits = self.kind == "binary" and self.bin_weights is self.bin_acts is True
        require(
            self.network != "boolnet" or (only_bits and not self.rotate_first),
            "boolnet is a network of bits alone: it has no ternary, float or rotated form, and no "
            "quantizer of one's own",
        )

    def _check_network(self):
        """Fill in the sizes that the network has by default."""
        require(
            self.network in NETWORK_NAMES,
            f"network must be one of {', '.join(NETWORK_NAMES)}, not {self.network!r}",
        )
        recurrent = self.network in RECURRENT
        sizes = RECURRENT_SIZES if recurrent else PAPER_SIZES
        for name, value in sizes.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        require(
            not (recurrent and (self.conv or self.rotate_first)),
            f"{self.network} reads the rows of images: it has no convolution and nothing to rotate",
        )
        require(not recurrent or self.fc, f"{self.network} needs a layer: give fc its units")
        if self.network == "boolnet" and self.slices is None:
            object.__setattr__(self, "slices", 8)
        require(
            self.slices is None or (is_whole(self.slices) and 1 <= self.slices <= 255),
            f"slices must be a whole number from 1 to 255, not {self.slices!r}",
        )
        only = "slices are thresholds of boolnet's pixels: they need network boolnet"
        require(self.slices is None or self.network == "boolnet", only)

        require_pixel_levels(self.input_levels)
        require(
            self.input_levels is None or (self.rotate_first is None and self.slices is None),
            "input_levels excludes rotate_first and slices: give one",
        )

    def _check_stride(self):
        stride = self.stride if isinstance(self.stride, tuple) else (self.stride,)
        _require_sizes("stride", stride)
        require(
            len(stride) in (1, len(self.conv)),
            f"stride must be one number, or one per conv layer: {len(self.conv)}, not {stride!r}",
        )
        object.__setattr__(self, "stride", stride[0] if len(set(stride)) == 1 else stride)

    def _check_switches(self):
        pool = self.max_pool
        require(
            isinstance(pool, tuple) and len(pool) == len(self.conv),
            f"max_pool needs one entry per conv layer: {len(self.conv)}, not {pool!r}",
        )
        require(all(p in (0, 1) for p in pool), f"max_pool must hold 0 or 1, not {list(pool)}")
        object.__setattr__(self, "max_pool", tuple(map(bool, pool)))
        for name in ("bin_weights", "bin_acts"):
            values = self.per_layer(name)
            require(
                len(values) == self.layers and all(v in (0, 1) for v in values),
                f"{name} must be one bool, or one per layer (conv, fc, output: {self.layers}), "
                f"not {getattr(self, name)!r}",
            )
            values = tuple(map(bool, values))
            object.__setattr__(self, name, values[0] if len(set(values)) == 1 else values)

    def _check_thresholds(self):
        require(self.levels in (2, 3), f"levels must be 2 or 3, not {self.levels!r}")
        if self.threshold_sigma is not None:
            _require_number("threshold_sigma", self.threshold_sigma, 0)
            require(
                not self.threshold, "threshold and threshold_sigma exclude each other: give one"
            )
            require(self.levels == 3, "threshold_sigma needs levels 3")
        if self.threshold is None:
            published = 0.02 if self.levels == 3 and self.threshold_sigma is None else 0.0
            object.__setattr__(self, "threshold", published)
        _require_number("threshold", self.threshold, 0)
        require(self.levels == 3 or self.threshold == 0, "a threshold needs levels 3")
        if self.activation_threshold is not None:
            _require_number("activation_threshold", self.activation_threshold, 0)
            require(self.levels == 3, "activation_threshold needs levels 3")

    def layer_shapes(self, in_dim: Sequence[int], out_dim: int) -> list[tuple[int, int]]:
        """Fan-in and output units of each layer, for images of shape `in_dim`."""
        height, width, channels = in_dim
        if self.network in RECURRENT:
            # The kernels of inputs and states, side by side.
            gates = 3 if self.network == "gru" else 4
            pairs = itertools.pairwise((width * channels, *self.fc))
            shapes = [(inputs + units, gates * units) for inputs, units in pairs]
            return [*shapes, (self.fc[-1], out_dim)]
        channels *= self.slices or 1
        shapes = []
        for filters, stride, pool in zip(self.conv, self.strides, self.max_pool, strict=True):
            shapes.append((self.filter_size**2 * channels, filters))
            channels = filters
            for step in (stride, 2 if pool else 1):
                height, width = -(-height // step), -(-width // step)
        units = (height * width * channels, *self.fc, out_dim)
        return [*shapes, *itertools.pairwise(units)]

    def weight_count(self, in_dim: Sequence[int], out_dim: int) -> int:
        """Number of weights, the matrix of a rotated first layer included."""
        shapes = self.layer_shapes(in_dim, out_dim)
        weights = sum(fan_in * units for fan_in, units in shapes)
        return weights + (shapes[0][0] ** 2 if self.rotate_first else 0)

    @property
    def layers(self) -> int:
        """Number of layers with weights."""
        return len(self.conv) + len(self.fc) + 1

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each convolutional layer."""
        return self.stride if isinstance(self.stride, tuple) else (self.stride,) * len(self.conv)

    def per_layer(self, name: str) -> tuple[bool, ...]:
        """`bin_weights` or `bin_acts` as a tuple with one entry per layer."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.layers

    @property
    def kind(self) -> str:
        """'binary', 'ternary', a quantizer's name or, where nothing is quantized, 'continuous'."""
        if self.bin_weights is False and self.bin_acts is False:
            return "continuous"
        if self.quantizer:
            return self.quantizer
        return "binary" if self.levels == 2 else "ternary"


@dataclass(frozen=True)
class TrainingParams:
    """How the network is trained. The defaults are the paper's.

    Parameters
    ----------
    batch_size, epochs : int
    lr_start, lr_end : float
    lr_schedule : {'exponential', 'linear'}
        Epoch e of n runs at lr_start·(lr_end/lr_start)^(e/n), or at lr_start + (lr_end −
        lr_start)·e/n.
    loss_mode : {'hinge-loss', 'softmax'}
    bn_momentum : float
        Weight of the old value in batch norm's moving averages. The published 0.999 needs some
        5,000 steps before its statistics mean anything.
    seed : int
        Fixes the initialization and the shuffling.
    precision : {'float32', 'mixed_bfloat16'}
        Keras' dtype policy for training. Latent weights, batch-norm statistics and the optimizer's
        state are float32 in both; so is all inference.
    augment : {'flip', 'crop-flip'}, optional
        Mirror training images left to right at random; 'crop-flip' shifts them, too.
    optimizer : {'adam', 'bop'}
        'bop' flips binary weights without latent ones, and moves the other variables by Adam; see
        `optimizers.Bop`.
    bop_gamma : float, optional
        Share of the newest gradient in Bop's average of gradients; by default its authors' 1e-4.
        With 'adam': keep the same average, which changes nothing else.
    bop_threshold : float, optional
        The average above which Bop flips a weight; by default 1e-8.
    kurtosis : float, optional
        Penalize the distance of each unit's kurtosis from this one; see `training.Kurtosis`.
    freeze_oscillating : float, optional
        Freeze binary weights that flip more often per step than this; see
        `optimizers.FreezingAdam`.
    teacher : str, optional
        Checkpoint of a network whose scores are learned in place of the labels.
    with_labels : bool
        Learn the labels too: the mean of both losses.
    temperature : float, optional
        Of the teacher: by what its scores and the network's are divided before softmax; by
        default 1.
    adversarial : float
        Train on images of which every pixel was changed by up to this, on the scale from 0 to 1, to
        raise the loss; see `training.attack_of_epoch`.
    threshold_penalty : float
        Factor of a loss that grows with the threshold of each unit; see
        `graph_ops.ShiftBatchNormalization`.

    Raises
    ------
    ValueError
        If a value is out of range or two of them contradict each other.
    """

    batch_size: int = 50
    epochs: int = 500
    lr_start: float = 1e-3
    lr_end: float = 3e-7
    lr_schedule: str = "exponential"
    loss_mode: str = "hinge-loss"
    bn_momentum: float = 0.99
    seed: int = 0
    precision: str = "float32"
    augment: str | None = None
    optimizer: str = "adam"
    bop_gamma: float | None = None
    bop_threshold: float | None = None
    kurtosis: float | None = None
    freeze_oscillating: float | None = None
    teacher: str | None = None
    with_labels: bool = False
    temperature: float | None = None
    adversarial: float = 0.0
    threshold_penalty: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, frozen(getattr(self, field.name)))
        for name, low in (("batch_size", 1), ("epochs", 0), ("seed", 0)):
            value = getattr(self, name)
            require(
                is_whole(value) and low <= value < 2**31,
                f"{name} must be a whole number from {low} to 2^31 - 1, not {value!r}",
            )
        _require_number("lr_start", self.lr_start, 0, open_low=True)
        _require_number("lr_end", self.lr_end, 0, open_low=True)
        _require_number("bn_momentum", self.bn_momentum, 0, 1)
        _require_number("adversarial", self.adversarial, 0, 1)
        _require_number("threshold_penalty", self.threshold_penalty, 0)
        require(
            self.lr_schedule in ("exponential", "linear"),
            f"lr_schedule must be exponential or linear, not {self.lr_schedule!r}",
        )
        require(
            self.loss_mode in ("hinge-loss", "softmax"),
            f"loss_mode must be hinge-loss or softmax, not {self.loss_mode!r}",
        )
        require(
            self.precision in ("float32", "mixed_bfloat16"),
            f"precision must be float32 or mixed_bfloat16, not {self.precision!r}",
        )
        require(
            self.augment in (None, "flip", "crop-flip"),
            f"augment must be flip or crop-flip, not {self.augment!r}",
        )
        self._check_optimizer()
        self._check_teacher()

    def _check_optimizer(self):
        bop = self.optimizer == "bop"
        require(
            self.optimizer in ("adam", "bop"),
            f"optimizer must be adam or bop, not {self.optimizer!r}",
        )
        require(bop or self.bop_threshold is None, "bop_threshold needs optimizer bop")
        for name, default in (("bop_gamma", 1e-4), ("bop_threshold", 1e-8)):
            if bop and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.bop_gamma is not None:
            _require_number("bop_gamma", self.bop_gamma, 0, 1, open_low=True)
        if bop:
            _require_number("bop_threshold", self.bop_threshold, 0)
        if self.kurtosis is not None:
            # No distribution has less than 1, that of two values.
            _require_number("kurtosis", self.kurtosis, 1)
            require(not bop, "kurtosis and optimizer bop exclude each other: Bop's weights are ±1")
        if self.freeze_oscillating is not None:
            _require_number("freeze_oscillating", self.freeze_oscillating, 0, 1, open_low=True)
            require(self.bop_gamma is None, "freeze_oscillating and bop exclude each other")

    def _check_teacher(self):
        taught = self.teacher is not None
        if taught and self.temperature is None:
            object.__setattr__(self, "temperature", 1.0)
        require(
            not taught or (isinstance(self.teacher, str) and self.teacher),
            f"teacher must be the path of a checkpoint, not {self.teacher!r}",
        )
        require(taught or not self.with_labels, "with_labels needs a teacher: it adds to one")
        alone = not (taught and self.adversarial)
        require(alone, "adversarial and teacher exclude each other: give one")
        require(taught or self.temperature is None, "temperature needs a teacher")
        if taught:
            _require_number("temperature", self.temperature, 0, open_low=True)

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of `epoch`, counted from 0."""
        done = epoch / max(self.epochs, 1)
        if self.lr_schedule == "linear":
            return self.lr_start + (self.lr_end - self.lr_start) * done
        return self.lr_start * (self.lr_end / self.lr_start) ** done


# The paper's training, and a shorter one, chosen by the runs in results/recipe_search.csv.
RECIPES = {
    "paper": TrainingParams(),
    "fast": TrainingParams(
        batch_size=100,
        epochs=40,
        lr_start=4e-3,
        lr_end=1e-5,
        lr_schedule="linear",
        augment="crop-flip",
    ),
}


def require_flips(network: NetworkParams, training: TrainingParams) -> None:
    """Raise ValueError if `training` counts on flips that no weight of `network` makes.

    Parameters
    ----------
    network : NetworkParams
    training : TrainingParams
    """
    wanted = {
        "optimizer bop": training.optimizer == "bop",
        "bop_gamma": training.bop_gamma is not None,
        "freeze_oscillating": training.freeze_oscillating is not None,
    }
    option = next((name for name, given in wanted.items() if given), None)
    if option is not None:
        signs = network.levels == 2 and network.quantizer is None
        binary = signs and any(network.per_layer("bin_weights"))
        require(binary, f"{option} needs binary weights: drop it, or quantize by the sign")
        plain = network.rotate_first is None
        require(plain, f"{option} and rotate_first exclude each other: its weights are not ±1")


def require_size(params: NetworkParams, in_dim: Sequence[int], out_dim: int) -> None:
    """Raise ValueError if a network's float32 weights need more memory than this machine has."""
    weights = params.weight_count(in_dim, out_dim)
    needed, has = 4 * weights, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        needed <= has,
        f"a network of {weights:,} weights would take {needed / 2**30:,.0f} GB of memory; "
        f"this machine has {has / 2**30:,.0f} GB",
    )


def require_packable(params: NetworkParams) -> None:
    """Raise ValueError, with the reason, if a network of these `NetworkParams` is no bits."""
    for name in ("bin_weights", "bin_acts"):
        # The output's activation is never quantized, whatever its switch says.
        hidden = params.per_layer(name)[: -1 if name == "bin_acts" else None]
        require(all(hidden), f"cannot pack: {name} leaves layers unquantized")
    for option, why in (
        ("quantizer", "its quantizer is not the sign or its ternary form"),
        ("rotate_first", "its first layer is rotated, so its weights are no bits"),
    ):
        require(getattr(params, option) is None, f"cannot pack: {why}")
    floats = {"residual": "shortcuts", "gru": "states", "lstm": "states"}.get(params.network)
    require(floats is None, f"cannot pack: its {floats} are floats")
