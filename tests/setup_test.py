"""The package that `pip install .` makes, beside a project that has a `utils` and a `data` too."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import setup

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but the package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    modules = [f"{module}.py" for module in (*setup.MODULES, "setup", "run_bnn", "bnn_test")]
    for name in ("pyproject.toml", *modules):
        shutil.copy(ROOT / name, source)
    for name in setup.FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target)
    command = [sys.executable, "-m", "pip", "install", *options, source]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_the_package_holds_what_it_imports(installed):
    package = installed / setup.PACKAGE
    names = {path.stem for path in package.iterdir()}
    assert names == {*setup.MODULES, *setup.FOLDERS, "__pycache__"}
    assert len(list((package / "export" / "templates").iterdir())) == 3
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir()}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [f"{node.module}.{alias.name}" for alias in node.names]
                if found[0].startswith(f"{setup.PACKAGE}."):
                    parts = found[0].split(".")
                    assert parts[1] in names, f"{path} imports {found[0]}"
            else:
                continue
            assert not {name.split(".")[0] for name in found} & own, f"{path} imports {found}"


@pytest.mark.parametrize(
    "before, after",
    [
        ("import utils", "from bnn_geometry import utils"),
        ("    import geometry as g", "    from bnn_geometry import geometry as g"),
        ("from fast import bits", "from bnn_geometry.fast import bits"),
        ("from packed.run import x  # data", "from bnn_geometry.packed.run import x  # data"),
        ("import utilsome", "import utilsome"),
        ("important = 1", "important = 1"),
        ("from numpy import walk", "from numpy import walk"),
    ],
)
def test_only_imports_of_this_project_are_rewritten(before, after):
    assert setup.rewritten(f"x = 1\n{before}\n") == f"x = 1\n{after}\n"


PROJECT = """
import data, utils  # The user's own.
import keras, numpy as np
from keras.layers import Flatten
from bnn_geometry import checkpoint, measure, quantizers
from bnn_geometry.bnn import BinaryNeuralNetwork, PackedNetwork
from bnn_geometry.graph_ops import QuantConv2D, QuantDense, ShiftBatchNormalization, Sign

assert utils.mine and data.mine
images = keras.Input((8, 8, 1), dtype="uint8")
x = QuantConv2D(4, 3, padding="same", use_bias=False, kernel_quantizer=Sign())(images)
x = Flatten()(ShiftBatchNormalization()(x))
x = QuantDense(3, use_bias=False, input_quantizer=Sign(), kernel_quantizer=Sign())(x)
model = keras.Model(images, ShiftBatchNormalization()(x))
pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
scores = model.predict(pixels, verbose=0)
assert (PackedNetwork.from_network(model).predict(pixels) == scores).all()
assert len(measure.measure_layers(model, pixels)) == 2
model.save("model.keras")
assert (checkpoint.open_model("model.keras").predict(pixels, verbose=0) == scores).all()
network = BinaryNeuralNetwork.load(PUBLISHED)
print(*network.predict(np.zeros((1, 32, 32, 3), np.uint8))[0])
"""


@pytest.mark.slow
def test_a_project_with_modules_of_the_same_names_uses_the_layers(installed, tmp_path):
    for name in ("utils.py", "data.py"):
        (tmp_path / name).write_text("mine = True\n")
    published = ROOT / "results" / "cifar-10_binary" / "network.keras"
    script = tmp_path / "project.py"
    script.write_text(PROJECT.replace("PUBLISHED", repr(str(published))))
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    import numpy as np

    from bnn import BinaryNeuralNetwork

    here = BinaryNeuralNetwork.load(published).predict(np.zeros((1, 32, 32, 3), np.uint8))[0]
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), here, rtol=1e-4)
