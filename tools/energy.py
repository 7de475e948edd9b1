"""What one image costs: operations, bytes moved and energy of networks of the paper's size.

python -m tools.energy          # prints the table and writes results/energy.csv

Energies are those of a processor of 45 nm at 0.9 V (M. Horowitz, "Computing's energy problem (and
what we can do about it)", ISSCC 2014): an integer addition of 8 bits 0.03 pJ, of 32 bits 0.1 pJ; a
float addition 0.9 pJ, a float multiplication 3.7 pJ; an access to DRAM, 64 bits, 1.3 to 2.6 nJ. He
has none of an XNOR and a popcount. Here a word of 32 bits costs three integer additions.

Batch norm is taken together with the product before it, and so are pooling, signs, and the joining
of a shortcut with the layer that it goes around. Every other value is written to DRAM once and read
once by each layer that takes it, and weights are read once.
"""

if __name__ == "__main__":
    import argparse

    # Before TensorFlow is imported, which takes seconds.
    form = argparse.RawDescriptionHelpFormatter
    cli = argparse.ArgumentParser("python -m tools.energy", None, __doc__, formatter_class=form)
    cli.parse_args()

import collections
import csv
import math
import os
from pathlib import Path

import walk
from bnn import BinaryNeuralNetwork, NetworkParams
from files import atomic_path
from graph_ops import LogicMerge, PixelSlices, Sign
from utils import one_line_errors

# isort: split
import keras
from tabulate import tabulate

RESULTS = Path(__file__).parent.parent / "results" / "energy.csv"
# Picojoules of one operation.
ENERGY = {
    "1-bit multiply-adds": 3 * 0.1 / 32,
    "integer additions": 0.1,
    "float additions": 0.9,
    "float multiplications": 3.7,
    "1-bit logic": 0.1 / 32,
}
# Picojoules to move a byte, least and most.
DRAM = 1300 / 8, 2600 / 8
FLOAT = {"bin_weights": False, "bin_acts": False}
NETWORKS = {
    "float": FLOAT,
    "binary": {},
    "residual": {"network": "residual"},
    "boolnet": {"network": "boolnet"},
}


class _Costs:
    """Counts along the steps of a functional model."""

    def __init__(self, model):
        self.graph = walk.graph_of(model)
        self.operations = collections.Counter()
        self.bytes = collections.Counter()
        self._writers, self._readers, self._shapes = {}, collections.defaultdict(list), {}
        (images,) = self.graph.inputs
        self._images = images
        self._shapes[images] = tuple(model.inputs[0].shape[1:])
        for step in self.graph.steps:
            for number in step.reads:
                self._readers[number].append(step)
            (written,) = step.writes
            self._writers[written] = step
            shapes = [(None, *self._shapes[slot.number]) for slot in self._reads(step)]
            shape = step.layer.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
            self._shapes[written] = tuple(shape[1:])
        for step in self.graph.steps:
            self._count(step)

    @staticmethod
    def _reads(step):
        return keras.tree.flatten(step.args)

    def _count(self, step):
        layer, read = step.layer, self._reads(step)[0].number
        (written,) = step.writes
        size = math.prod(self._shapes[written])
        if walk.forms_product(layer):
            self._count_product(layer, read, size)
        elif isinstance(layer, keras.layers.BatchNormalization):
            if self._bits(written) == 1:
                self.operations["integer additions"] += size
            else:
                self.operations["float additions"] += 2 * size
                self.operations["float multiplications"] += size
        elif isinstance(layer, keras.layers.MaxPooling2D):
            self.operations["1-bit logic"] += 3 * size
        elif isinstance(layer, PixelSlices):
            self.operations["integer additions"] += size
            self._move("activations", read, written)
        elif isinstance(layer, (keras.layers.Add, LogicMerge)):
            kind = "1-bit logic" if isinstance(layer, LogicMerge) else "float additions"
            self.operations[kind] += size
            self._move("activations", *(slot.number for slot in self._reads(step)[1:]))
            if self._is_made_for_it(self._reads(step)[1].number):
                self._move("activations", self._reads(step)[1].number)
            self._move("activations", written)

    def _is_made_for_it(self, number):
        """Does a shortcut have a layer of its own, which wrote it?"""
        step = self._writers[number]
        while not (walk.forms_product(step.layer) or len(step.reads) > 1):
            (number,) = step.reads
            if number not in self._writers or isinstance(step.layer, PixelSlices):
                return False
            step = self._writers[number]
        return walk.forms_product(step.layer) and step.layer.name.endswith("_shortcut")

    def _count_product(self, layer, read, size):
        fan_in = math.prod(layer.latent_kernel.shape[:-1])
        quantized = layer.kernel_quantizer is not None
        if quantized and self._bits(read) == 1:
            self.operations["1-bit multiply-adds"] += fan_in * size
        elif quantized:
            self.operations["integer additions"] += fan_in * size
        else:
            self.operations["float additions"] += fan_in * size
            self.operations["float multiplications"] += fan_in * size
        weights = math.prod(layer.latent_kernel.shape)
        self.bytes["weights"] += weights * (1 if quantized else 32) / 8
        self._move("activations", read)
        after = self._readers_after(layer)
        if not any(isinstance(step.layer, (keras.layers.Add, LogicMerge)) for step in after):
            self._move("activations", next(iter(after[-1].writes)) if after else read)

    def _readers_after(self, layer):
        """The steps that are taken together with a product, in order."""
        step = next(step for step in self.graph.steps if step.layer is layer)
        found = []
        while True:
            (written,) = step.writes
            readers = self._readers[written]
            if len(readers) != 1 or walk.forms_product(readers[0].layer):
                return found or [step]
            step = readers[0]
            found.append(step)
            if isinstance(step.layer, (keras.layers.Add, LogicMerge)):
                return found

    def _move(self, what, *numbers):
        for number in numbers:
            self.bytes[what] += math.prod(self._shapes[number]) * self._bits(number) / 8

    def _bits(self, number):
        """Bits that hold an entry of a tensor between two layers."""
        if number == self._images:
            return 8
        layer = self._writers[number].layer
        if isinstance(layer, (LogicMerge, PixelSlices)) or self._is_sign(layer):
            return 1
        if isinstance(layer, (keras.layers.Flatten, keras.layers.MaxPooling2D)):
            (read,) = self._writers[number].reads
            if self._bits(read) == 1:
                return 1
        readers = self._readers[number]
        return 1 if readers and all(map(self._only_signs, readers)) else 32

    @staticmethod
    def _is_sign(layer):
        return isinstance(layer, keras.layers.Activation) and isinstance(layer.activation, Sign)

    def _only_signs(self, step):
        """Do only the signs of what it reads matter to a step?"""
        if isinstance(step.layer, keras.layers.Flatten):
            (written,) = step.writes
            return all(map(self._only_signs, self._readers[written]))
        quantizer = getattr(step.layer, "input_quantizer", None)
        return isinstance(quantizer, Sign) or self._is_sign(step.layer)


def costs(network: BinaryNeuralNetwork) -> dict:
    """Operations, bytes moved and energy of one image.

    Parameters
    ----------
    network : bnn.BinaryNeuralNetwork
        Not recurrent.

    Returns
    -------
    dict
        Numbers of operations by the names of `ENERGY`, bytes of 'weights' and 'activations' that
        are moved, and energies in µJ: of the operations, and of DRAM, least and most.
    """
    counted = _Costs(network.model)
    operations = {name: int(counted.operations[name]) for name in ENERGY}
    moved = {name: math.ceil(counted.bytes[name]) for name in ("weights", "activations")}
    computing = sum(count * ENERGY[name] for name, count in operations.items())
    least, most = (sum(moved.values()) * each for each in DRAM)
    return {
        **operations,
        **{f"bytes of {name}": count for name, count in moved.items()},
        "µJ computing": round(computing / 1e6, 2),
        "µJ DRAM, least": round(least / 1e6, 1),
        "µJ DRAM, most": round(most / 1e6, 1),
    }


def read(path: str | os.PathLike = RESULTS) -> list[dict]:
    """The rows of a table that `main` wrote, numbers as numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: text if name == "network" else float(text) for name, text in row.items()}
        for row in rows
    ]


def main() -> None:
    """Print the table of `NETWORKS` on CIFAR-10's images and write it to `RESULTS`."""
    rows = [
        {
            "network": name,
            **costs(BinaryNeuralNetwork((32, 32, 3), 10, NetworkParams(**params))),
        }
        for name, params in NETWORKS.items()
    ]
    with atomic_path(RESULTS) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), intfmt=","))


if __name__ == "__main__":
    with one_line_errors("python -m tools.energy"):
        main()
