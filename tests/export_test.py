"""Exported networks beside the float network: compiled, or run by the runtime of their format."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import packed_run_test as packed_tests
import pytest

import export
import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import load_data, missing_files
from export import c
from packed.compile import compile_model

# isort: split
import keras
import tensorflow as tf

ROOT = Path(__file__).parent.parent
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = {
    "fast": ("-O3", "-march=native"),
    "plain": ("-O2",),
    "portable": ("-O2", "-DNETWORK_PORTABLE"),
    "32-bit words": ("-O2", "-DNETWORK_WORD_BITS=32"),
    "32 bits": ("-O2", "-m32", "-DNETWORK_WORD_BITS=32"),
    "64-bit words on 32 bits": ("-O2", "-m32"),
    "sanitized": SANITIZED,
    "sanitized vectors": (*SANITIZED, "-march=native"),
    "sanitized 32-bit words": (*SANITIZED, "-DNETWORK_WORD_BITS=32"),
    # What may round otherwise: the scores do not let it.
    "fused": ("-std=gnu99", "-O3", "-march=native", "-ffp-contract=fast"),
    "unsafe floats": ("-Ofast", "-march=native"),
}
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="there is no gcc and no clang")


# Each takes seconds: the corners in every run, the others with make test-all.
QUICK_SHAPES = {("odd", "binary"), ("odd", "two thresholds"), ("only an output", "binary")} | {
    ("few levels", "binary")
}
QUICK_MODELS = {"valid", "signs beside ternary values", "strides", "bits added", "bits joined"}
QUICK_FLAGS = {"fast", "portable", "32-bit words", "fused", "unsafe floats"}
SHAPES = [
    pytest.param(*pair, marks=() if pair in QUICK_SHAPES else pytest.mark.slow)
    for pair in itertools.product(packed_tests.SHAPES, ["binary", "ternary", "two thresholds"])
]
MODELS = [
    pytest.param(name, marks=() if name in QUICK_MODELS else pytest.mark.slow)
    for name in packed_tests.MODELS
]


def works(compiler, flags, folder):
    """Can this machine build and run a program with these flags?"""
    (folder / "probe.c").write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
    command = [compiler, *flags, "-o", "probe", "probe.c"]
    built = subprocess.run(command, cwd=folder, capture_output=True)
    return built.returncode == 0 and subprocess.run([folder / "probe"]).returncode == 0


def scores_in_c(folder, images, compiler=COMPILERS[0] if COMPILERS else None, flags=FLAGS["fast"]):
    """Labels and scores that the compiled program in `folder` prints for images."""
    program = folder / "classify"
    command = [compiler, *STRICT, *flags, "-o", program, "network.c", "main.c", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run([program], input=images.tobytes(), capture_output=True, check=True)
    assert not done.stderr
    lines = np.array([line.split() for line in done.stdout.decode().splitlines()], np.float64)
    return lines[:, 0].astype(int), lines[:, 1:].astype(np.float32)


def check_c(folder, images, expected, **options):
    labels, scores = scores_in_c(folder, images, **options)
    np.testing.assert_array_equal(scores.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(labels, expected.argmax(1))


def write_c(model, folder):
    for name, text in c.sources(compile_model(model), ["a test"]).items():
        (folder / name).write_text(text, encoding="utf-8")


def network_of(shape, level):
    """An untrained network whose batch norms look trained, and images."""
    in_dim, params = packed_tests.SHAPES[shape]
    params = NetworkParams(**params, **packed_tests.LEVELS[level])
    network = BinaryNeuralNetwork(in_dim, 4, params)
    packed_tests.give_history(network.norms)
    return network, packed_tests.images(in_dim)


@pytest.fixture(scope="module", params=["binary", "ternary"])
def exported(request, tmp_path_factory):
    """A folder with every format that can be written here, images and their scores."""
    network, x = network_of("odd", request.param)
    folder = tmp_path_factory.mktemp("exported") / request.param
    network.export(folder, {"data_set": "noise"})
    return folder, x, network.predict(x)


# --- C ----------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("shape", "level"), SHAPES)
def test_scores_in_c_are_those_of_the_float_network(shape, level, tmp_path):
    network, x = network_of(shape, level)
    write_c(network.model, tmp_path)
    check_c(tmp_path, x, network.predict(x))


@needs_compiler
@pytest.mark.parametrize("shape", packed_tests.BOOLEAN)
def test_scores_in_c_of_a_network_of_bits(shape, tmp_path):
    in_dim, params = packed_tests.BOOLEAN[shape]
    network = BinaryNeuralNetwork(in_dim, 4, NetworkParams(network="boolnet", **params))
    packed_tests.give_history(network.norms)
    x = packed_tests.images(in_dim)
    write_c(network.model, tmp_path)
    check_c(tmp_path, x, network.predict(x))


@needs_compiler
@pytest.mark.parametrize("name", MODELS)
def test_scores_in_c_of_a_model_built_by_hand(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = packed_tests.model_by_hand(packed_tests.MODELS[name]())
    x = packed_tests.images(model.inputs[0].shape[1:])
    write_c(model, tmp_path)
    expected = model.predict(x, verbose=0)
    check_c(tmp_path, x, expected)
    if works(COMPILERS[0], FLAGS["sanitized"], tmp_path):
        check_c(tmp_path, x, expected, flags=FLAGS["sanitized 32-bit words"])


@pytest.mark.parametrize(
    "flags",
    [pytest.param(name, marks=() if name in QUICK_FLAGS else pytest.mark.slow) for name in FLAGS],
)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_way_to_compile_gives_the_same_scores(compiler, flags, exported, tmp_path):
    if not works(compiler, FLAGS[flags], tmp_path):
        pytest.skip(f"{compiler} cannot build with {' '.join(FLAGS[flags])} here")
    folder, x, expected = exported
    for name in c.FILES:
        shutil.copy(folder / name, tmp_path)
    check_c(tmp_path, x, expected, compiler=compiler, flags=FLAGS[flags])


@needs_compiler
def test_the_program_refuses_half_an_image_and_a_missing_file(tmp_path):
    network, x = network_of("dense", "binary")
    write_c(network.model, tmp_path)
    scores_in_c(tmp_path, x)
    program = tmp_path / "classify"
    done = subprocess.run([program], input=x.tobytes()[:-1], capture_output=True)
    assert done.returncode == 2
    assert b"the last image has 31 bytes, not 32" in done.stderr
    assert len(done.stdout.splitlines()) == len(x) - 1
    assert subprocess.run([program, "nowhere"], capture_output=True).returncode == 2
    (tmp_path / "x.raw").write_bytes(x.tobytes())
    done = subprocess.run([program, tmp_path / "x.raw"], capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == len(x)


def test_a_header_cannot_end_its_comment():
    network, _ = network_of("dense", "binary")
    program = compile_model(network.model)
    header = c.sources(program, ["set: */ int x; /*\nnext ??/"])["network.h"]
    assert header.startswith("/* set: * / int x; / * next ? ?/ */\n")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("data_set", ["digits", "MNIST", "cifar-10"])
def test_scores_in_c_are_equal_on_whole_test_sets(data_set, levels, tmp_path):
    if missing_files(data_set):
        pytest.skip(f"{data_set} is not here")
    data = load_data(data_set)
    params = NetworkParams(conv=[24, 70], max_pool=[1, 1], fc=[65], levels=levels)
    training = TrainingParams(epochs=3, lr_start=1e-2, lr_end=1e-3, bn_momentum=0.9)
    network = BinaryNeuralNetwork(data.x_test.shape[1:], 10, params, training)
    network.fit(data.x_train[:1000], data.y_train[:1000])
    write_c(network.model, tmp_path)
    check_c(tmp_path, data.x_test, network.predict(data.x_test))


@needs_compiler
@pytest.mark.slow
def test_the_published_network_in_c_on_the_whole_test_set(tmp_path):
    if missing_files("cifar-10"):
        pytest.skip("cifar-10 is not here")
    x = load_data("cifar-10").x_test
    network = BinaryNeuralNetwork.load(ROOT / "results/cifar-10_binary/network.keras")
    write_c(network.model, tmp_path)
    check_c(tmp_path, x, network.predict(x))


# --- Other formats ----------------------------------------------------------------------------


def check_scores(scores, expected):
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(scores.argmax(1), expected.argmax(1))


def test_the_record_says_what_was_exported(exported):
    folder, *_ = exported
    record = json.loads((folder / export.RECORD).read_text())
    assert record["data_set"] == "noise"
    assert {"network.h", "main.c", "export.json", *record["formats"].values()} == {
        path.name for path in folder.iterdir()
    }
    assert "data set: noise" in (folder / "network.h").read_text(encoding="utf-8")


def test_saved_model(exported):
    folder, x, expected = exported
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    check_scores(loaded.serve(x).numpy(), expected)


def test_litert(exported):
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    folder, x, expected = exported
    interpreter = runtime.Interpreter(str(folder / "network.tflite"))
    (images,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(images["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(images["index"], x)
    interpreter.invoke()
    check_scores(interpreter.get_tensor(scores["index"]), expected)


def test_onnx(exported):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    folder, x, expected = exported
    session = runtime.InferenceSession(str(folder / "network.onnx"))
    (images,) = session.get_inputs()
    check_scores(session.run(None, {images.name: x})[0], expected)


@pytest.mark.parametrize("name", [*MODELS, "odd"])
def test_qonnx(name):
    wrapper = pytest.importorskip("qonnx.core.modelwrapper")
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    from export.qonnx import model_of

    keras.utils.set_random_seed(0)
    if name in packed_tests.MODELS:
        model = packed_tests.model_by_hand(packed_tests.MODELS[name]())
    else:
        model = network_of(name, "two thresholds")[0].model
    x = packed_tests.images(model.inputs[0].shape[1:])
    made = model_of(compile_model(model), {"data_set": "noise"}, batch=len(x))
    kinds = {node.op_type for node in made.graph.node}
    assert kinds & {"Quant", "BipolarQuant"}
    made = wrapper.ModelWrapper(made).transform(InferShapes())
    found = execute_onnx(made, {"images": x.astype(np.float32)})["scores"]
    check_scores(found, model.predict(x, verbose=0))


@needs_compiler
def test_a_keras_model_with_shortcuts_of_bits_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FORMATS", {"C": export.FORMATS["C"]})
    model = packed_tests.model_by_hand(packed_tests.with_bits_added())
    export.export(model, tmp_path / "folder")
    x = packed_tests.images((9, 8, 3))
    check_c(tmp_path / "folder", x, model.predict(x, verbose=0))
    record = json.loads((tmp_path / "folder/export.json").read_text())
    assert record["network"].startswith("ternary, ")


# --- Folders and refusals ---------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_refused_and_an_export_replaced(tmp_path, monkeypatch):
    network, _ = network_of("dense", "binary")
    monkeypatch.setattr(export, "FORMATS", {"C": export.FORMATS["C"]})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "theirs").touch()
    with pytest.raises(ValueError, match=r"is not empty and holds no export\.json"):
        network.export(folder)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    (folder / "theirs").unlink()
    network.export(folder, {"turn": 1})
    network.export(folder, {"turn": 2})
    assert json.loads((folder / "export.json").read_text())["turn"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(ValueError, match="is a file"):
        network.export(folder / "main.c")


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    network, _ = network_of("dense", "binary")
    monkeypatch.setattr(export, "FORMATS", {"C": export.FORMATS["C"]})
    network.export(tmp_path / "folder", {"turn": 1})

    def fails(program, about):
        raise ValueError("no C today")

    monkeypatch.setattr(c, "sources", fails)
    with pytest.raises(ValueError, match="no C today"):
        network.export(tmp_path / "folder")
    assert json.loads((tmp_path / "folder/export.json").read_text())["turn"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--continuous"], "cannot export: bin_weights leaves layers unquantized"),
        (["--quantizer", "scaled_sign"], "cannot export: its quantizer"),
        (["--rotate_first", "random"], "cannot export: its first layer is rotated"),
        (["--network", "residual"], "cannot export: its shortcuts are floats"),
        (["--network", "gru"], "cannot export: its states are floats"),
        (["--epochs", "0"], "--export needs a trained network"),
    ],
)
def test_what_cannot_be_exported_gets_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    folder = tmp_path / "export"
    command = ["--data_set", "digits", "--epochs", "1", *flags, "--export", str(folder)]
    with pytest.raises(SystemExit) as stop:
        run_bnn.main(command)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_the_command_exports_a_checkpoint(tmp_path, capsys):
    data, params = load_data("digits"), NetworkParams(conv=[8], max_pool=[1], fc=[])
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, TrainingParams(epochs=1, lr_start=1e-2))
    network.fit(data.x_train, data.y_train)
    checkpoint, folder = tmp_path / "network.keras", tmp_path / "export"
    network.save(checkpoint)
    command = ["run_bnn.py", "--data_set", "digits", "--epochs", "0", "--param_file", checkpoint]
    command = [sys.executable, *command, "--export", folder]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    assert "exported to" in done.stdout.decode()
    record = json.loads((folder / "export.json").read_text())
    assert record["data_set"] == "digits"
    assert record["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    check_c(folder, data.x_test, network.predict(data.x_test))
    labels, _ = scores_in_c(folder, data.x_test)
    assert record["test_accuracy"] == pytest.approx(np.mean(labels == data.y_test), abs=1e-4)
