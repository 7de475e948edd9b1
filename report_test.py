"""The claims, each condition met and missed; the report, stored and opened."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import graph_ops
import measure
import report
import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import load_data
from utils import write_json

# --- Claims and the report ---

# Theory, and a figure: these ask for no quantized convolution.
ALWAYS_JUDGED = {"angle-random", "angle-binary", "rotation", "weights-hist"}


def dot_products(r, inside=None, units=64):
    inside = r if inside is None else inside
    units = np.ones(units)
    histogram = np.eye(4, dtype=int)
    return measure.DotProducts(
        r, inside, 2.0, 0.1, r * units, inside * units, (-1, 1, -1, 1), histogram
    )


def exemplary(threshold=0.0):
    """A report in which every claim holds: Gaussian weights, correlations as published."""
    rng, layers = np.random.default_rng(0), []
    for i, d in enumerate((27, 288, 576)):
        wc = 0.18 * rng.standard_normal((3, 3, d // 9, 64))
        layer = measure.LayerMeasurement(
            name=f"conv_{i + 1}",
            fan_in=d,
            convolutional=True,
            wc=wc,
            wb=np.sign(wc) * (np.abs(wc) > threshold),
            threshold=threshold,
            quantized=True,
            quantized_input=i > 0,
        )
        cosine = np.cos(layer.angles).mean()
        layer.weights_dot = dot_products(0.96 if i else 0.57)
        layer.activations_dot = dot_products(0.95) if i else None
        layer.entries = dot_products(0.8) if i else None
        layer.permuted = dot_products(0.85, cosine)
        layer.spectrum = np.array([3.0, 1.0, *np.zeros(d - 2)])
        layer.predicted_r = np.full(64, 0.96 if i else 0.56)
        layer.deflated_r = None if i else np.full(64, 0.85)
        layer.textured = np.array([0.9, 0.8, 0.95]) if i else None
        layers.append(layer)
    bases = {"as is": 0.57, "random": 0.77, "pca": 0.77, "zca": 0.83}
    rotation = {
        name: dict(zip(("weights", "patches", "both"), (r, r, r / 2), strict=True))
        for name, r in bases.items()
    }
    substitution = dict.fromkeys(("none", "all", "conv_1", "conv_2", "conv_3"), (0.1, 0.89))
    about = {
        "data_set": "cifar-10",
        "test_images": 10_000,
        "test_accuracy": 0.9,
        "network_params": {},
        "seconds": 1,
        "peak_memory_mb": 1,
    }
    return report.Report("0" * 64, about, layers, rotation, substitution)


def judged(made):
    return {claim.id: claim for claim in made.claims()}


def test_an_exemplary_network_bears_out_every_claim():
    claims = judged(exemplary())
    assert {name for name, claim in claims.items() if not claim.holds} == {"ternary"}
    claims = judged(exemplary(threshold=0.02))
    assert {name for name, claim in claims.items() if not claim.holds} == {"angle-layers"}


def test_a_float_network_is_told_that_nothing_is_quantized():
    made = exemplary()
    for layer in made.layers:
        layer.quantized = layer.quantized_input = False
    told = {claim.id: claim.measured for claim in made.claims() if claim.holds is None}
    assert set(told) == set(judged(made)) - ALWAYS_JUDGED
    assert all("quantized" in measured for measured in told.values()), told


def weights_of_shape(made, kurtosis):
    rng, layer = np.random.default_rng(1), made.layers[1]
    sample = {
        "uniform": rng.uniform(-1, 1, layer.wc.shape),
        "laplace": rng.laplace(0, 0.1, layer.wc.shape),
    }
    layer.wc = sample[kurtosis]
    layer.wb = np.sign(layer.wc)


def peak_at_zero(made):
    """The input channels of a tenth of the weights are as good as cut off."""
    layer = made.layers[1]
    layer.wc[:, :, ::10] = 1e-3


def two_scales(made):
    """Entries of one magnitude in half of the units: the kurtosis' mean no longer tells."""
    layer = made.layers[2]
    layer.wc[..., ::2] = 0.2 * np.sign(layer.wc[..., ::2])


# Each breaks one condition only just, or one of its parts.
BREACHES = {
    "angle-layers: uniform": lambda made: weights_of_shape(made, "uniform"),
    "angle-layers: laplace": lambda made: weights_of_shape(made, "laplace"),
    "angle-layers: kurtosis": two_scales,
    "angle-layers: peak": peak_at_zero,
    "angle-scaling": two_scales,
    "weights-dot: inner": lambda made: vars(made.layers[2].weights_dot).update(r=0.899),
    "weights-dot: first": lambda made: vars(made.layers[0].weights_dot).update(r=0.97),
    "activations-dot": lambda made: vars(made.layers[1].activations_dot).update(r=0.849),
    "permutation: cosine": lambda made: vars(made.layers[1].permuted).update(
        inside_unit_r=np.full(64, 0.76)
    ),
    "permutation: fall": lambda made: vars(made.layers[1].weights_dot).update(
        inside_unit_r=np.full(64, 0.87)
    ),
    "first-layer: axis": lambda made: vars(made.layers[0]).update(spectrum=np.array([0.49, 0.51])),
    "first-layer: whitening": lambda made: made.rotation["zca"].update(weights=0.71),
    "first-layer: predicted": lambda made: vars(made.layers[0]).update(
        predicted_r=np.full(64, 0.535)
    ),
    "substitution": lambda made: made.substitution.update(conv_2=(0.9, 0.879)),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_condition_that_is_missed_is_said_and_explained(breach):
    made = exemplary()
    BREACHES[breach](made)
    claim = judged(made)[breach.split(":")[0]]
    assert claim.holds is False and claim.why
    assert f"**{claim.id}**: {claim.why}" in report.report_text(made, made.claims())


def test_layers_that_are_not_judged_change_no_verdict():
    made = exemplary()
    made.substitution["conv_1"] = made.substitution["all"] = (0.1, 0.1)
    vars(made.layers[0].permuted).update(inside_unit_r=np.full(64, 0.5))
    dense = dataclasses.replace(
        made.layers[2], name="fc_1", convolutional=False, weights_dot=dot_products(0.1)
    )
    made.layers.append(dense)
    assert [c.id for c in made.claims() if not c.holds] == ["ternary"]


def test_what_cannot_be_judged_is_not():
    params = NetworkParams(conv=[], max_pool=[], fc=[5])
    network = BinaryNeuralNetwork((7, 6, 2), 4, params)
    x = np.random.default_rng(0).integers(0, 256, (20, 7, 6, 2), dtype=np.uint8)
    y = np.arange(20) % 4
    layers = measure.measure_network(network, x, x)
    about = {**exemplary().about, "test_accuracy": 0.25}
    substitution = measure.substitution_accuracies(network, x, x, y)
    made = report.Report("", about, layers, {}, substitution)
    holds = {claim.id for claim in made.claims() if claim.holds is not None}
    assert holds == ALWAYS_JUDGED
    assert "fc_1" in report.report_text(made, made.claims())


SLOW = (pytest.param(kind, marks=pytest.mark.slow) for kind in ("ternary", "rotated"))


@pytest.fixture(scope="module", params=["binary", *SLOW])
def checkpoint(request, tmp_path_factory):
    """A checkpoint that takes digits, trained on a few of them."""
    kind = {"ternary": {"levels": 3}, "rotated": {"rotate_first": "pca"}}.get(request.param, {})
    params = NetworkParams(conv=[4, 6, 6], max_pool=[0, 0, 1], fc=[5], **kind)
    training = TrainingParams(epochs=1, lr_start=1e-2, lr_end=1e-2)
    data = load_data("digits")
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    network.fit(data.x_train[:300], data.y_train[:300])
    path = tmp_path_factory.mktemp("run") / "network.keras"
    network.save(path)
    return path


def test_the_report_is_stored_with_its_checkpoint_alone(checkpoint, capsys):
    assert report.stored_report(checkpoint) is None
    report.main([str(checkpoint), "--images", "120"])
    capsys.readouterr()
    folder = checkpoint.parent
    stored, summary = (
        report.stored_report(checkpoint),
        json.loads((folder / "report.json").read_text()),
    )
    assert summary["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert summary["test_images"] == 120
    claims = [{**vars(claim), "condition": claim.condition} for claim in stored.claims()]
    assert claims == summary["claims"]
    assert (folder / "report.md").read_text() == report.report_text(stored, stored.claims())
    data = load_data("digits")
    network = BinaryNeuralNetwork.load(checkpoint)
    fresh = measure.measure_network(network, data.x_test[:120], data.x_train)
    for ours, theirs in zip(stored.layers, fresh, strict=True):
        np.testing.assert_array_equal(ours.wb, theirs.wb)
        np.testing.assert_array_equal(ours.weights_dot.histogram, theirs.weights_dot.histogram)
        np.testing.assert_allclose(ours.predicted_r, theirs.predicted_r)
        assert ours.permuted.r == theirs.permuted.r

    for name in ("report.npz", "report.json"):
        whole = (folder / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"[]"):
            (folder / name).write_bytes(damaged)
            assert report.stored_report(checkpoint) is None
        (folder / name).write_bytes(whole)
    assert report.stored_report(checkpoint) is not None
    network.with_weights([]).fit(data.x_train[:50], data.y_train[:50]).save(checkpoint)
    assert report.stored_report(checkpoint) is None


def test_the_published_report_is_of_the_published_checkpoint():
    folder = Path(report.__file__).parent / "results" / "cifar-10_binary"
    checkpoint = folder / "network.keras"
    assert checkpoint.stat().st_size <= 32e6
    stored = report.stored_report(checkpoint)
    assert stored.about["test_images"] == 10_000
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert stored.about["test_accuracy"] == run["test_accuracy"]
    text = report.report_text(stored, stored.claims())
    assert text == (folder / "report.md").read_text(encoding="utf-8")


def test_layers_of_ternary_networks_are_read_from_their_reports(tmp_path):
    made = exemplary(threshold=0.02)
    layers = [report._plain(report.layer_summary(layer)) for layer in made.layers]
    for name, levels in (("two", 2), ("three", 3), ("three_seed1", 3), ("three_seed2", 3)):
        summary = {"network_params": {"levels": levels}, "layers": layers}
        write_json(tmp_path / name / "report.json", summary)
    networks = report.ternary_layers(tmp_path)
    assert list(networks) == ["three"]
    for (tau, angle, zeros), layer in zip(networks["three"], 3 * made.layers, strict=True):
        assert tau == pytest.approx(layer.tau)
        assert angle == pytest.approx(layer.angles.mean())
        assert zeros == np.mean(layer.wb == 0)


def test_a_notebook_opens_what_the_reader_means(tmp_path, monkeypatch):
    output, results = tmp_path / "output", tmp_path / "results"
    monkeypatch.delenv("BNN_CHECKPOINT", raising=False)
    monkeypatch.setattr(report, "missing_files", lambda data_set: [])

    def trained(folder, in_dim, age):
        path = folder / "network.keras"
        BinaryNeuralNetwork(in_dim, 10, NetworkParams(conv=[2], max_pool=[0], fc=[])).save(path)
        os.utime(path, (1e9 - age, 1e9 - age))
        return path

    def chosen():
        path, why = report.choose_checkpoint(output, results)
        assert why.startswith(f"{path}: ")
        return path

    with pytest.raises(FileNotFoundError, match="run make demo"):
        chosen()
    demo = trained(output / "demo", (8, 8, 1), age=0)
    assert chosen() == demo
    trained(output / "cluster_demo", (8, 8, 1), age=0)
    assert chosen() == demo
    published = trained(results / "cifar-10_binary", (32, 32, 3), age=1)
    assert chosen() == published
    monkeypatch.setattr(report, "missing_files", lambda data_set: data_set == "cifar-10")
    assert chosen() == demo
    monkeypatch.setattr(report, "missing_files", lambda data_set: [])
    newest, older = (trained(output / f"run_{age}", (28, 28, 1), age) for age in (2, 3))
    assert chosen() == newest
    monkeypatch.setenv("BNN_CHECKPOINT", str(older))
    assert chosen() == older


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/missing.keras"], "there is no checkpoint"),
        (["{}/text.keras"], "damaged or no checkpoint"),
        (["{}/text.keras", "--images", "0"], "--images must be at least 1"),
        (["{}/cifar.keras", "--data_dir", "{}/nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "text.keras").write_text("no checkpoint")
    params = NetworkParams(conv=[2], max_pool=[0], fc=[])
    BinaryNeuralNetwork((32, 32, 3), 10, params).save(tmp_path / "cifar.keras")
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(tmp_path) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("report.py: error:") and message in lines[0]
    assert not (tmp_path / "report.md").exists()


# --- Quantizers of one's own ---


@pytest.fixture
def readme():
    """The README's section on a quantizer of one's own: its Python, run, and its command."""
    text = (Path(report.__file__).parent / "README.md").read_text(encoding="utf-8")
    section = text.split("## Change something and look again")[1].split("\n## ")[0]
    blocks = dict(re.findall("```(.*)\n([^`]*)```", section))
    before = dict(graph_ops.QUANTIZERS)
    exec(blocks["python"], {"graph_ops": graph_ops, "tf": tf})
    yield blocks
    graph_ops.QUANTIZERS.clear()
    graph_ops.QUANTIZERS.update(before)


def test_the_readmes_quantizer_trains_saves_reloads_and_is_measured(readme, tmp_path, capsys):
    command, make = readme[""].splitlines()
    arguments = shlex.split(command.split("run_bnn.py")[1])
    path = tmp_path / "network.keras"
    run_bnn.main([*arguments, "--out_dir", str(tmp_path), "--debug"])
    assert make == f"make report CHECKPOINT=output/digits_{arguments[3]}/network.keras"

    trained = BinaryNeuralNetwork.load(path)
    assert {layer.weight_quantizer for layer in trained.model.quantized_layers} == {"bireal"}
    assert trained.model.conv_layers[0].activation_quantizer == "bireal"
    assert judged(report.measure_checkpoint(path, images=30))["weights-dot"].holds is not None
    for own in (arguments, ["--data_set", "digits", "--param_file", str(path), "--epochs", "0"]):
        with pytest.raises(SystemExit):
            run_bnn.main([*own, "--out_dir", str(tmp_path), "--pack"])
        assert "cannot pack: its quantizer is not the sign" in capsys.readouterr().err

    graph_ops.QUANTIZERS.pop("bireal")
    with pytest.raises(ValueError, match="no quantizer named 'bireal'; known are binary"):
        BinaryNeuralNetwork.load(path)


def test_the_readmes_quantizer_trains_from_python_with_its_own_gradient(readme, tmp_path):
    values, gradient = graph_ops.quantizer_curve("bireal", [-2, -0.75, -0.0, 0.25, 1.5])
    assert values.tolist() == [-1, -1, 1, 1, 1]
    np.testing.assert_allclose(gradient, [0, 0.5, 2, 1.5, 0])
    data = load_data("digits")
    params = NetworkParams(conv=[4, 5], max_pool=[0, 1], fc=[], quantizer="bireal")
    training = TrainingParams(epochs=1, lr_start=1e-2, lr_end=1e-2)
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    before = network.model.get_weights()[0]
    network.fit(data.x_train[:200], data.y_train[:200]).save(tmp_path / "network.keras")
    assert not np.allclose(network.model.get_weights()[0], before, atol=1e-3)
    opened = BinaryNeuralNetwork.load(tmp_path / "network.keras")
    np.testing.assert_array_equal(opened.predict(data.x_test), network.predict(data.x_test))
