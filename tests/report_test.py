"""The report: measured, stored, restored and rendered; and the README's own quantizer."""

import dataclasses
import hashlib
import html
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import claims
import graph_ops
import measure
import report
import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import IMAGE_SHAPES, data_md5, load_data
from files import write_json
from page import CAPTIONS

RESULTS = Path(report.__file__).parent / "results"
SLOW = (pytest.param(kind, marks=pytest.mark.slow) for kind in ("ternary", "rotated"))


@pytest.fixture(scope="module", params=["binary", *SLOW])
def checkpoint(request, tmp_path_factory):
    """A checkpoint trained on a few digits."""
    kind = {"ternary": {"levels": 3}, "rotated": {"rotate_first": "pca"}}.get(request.param, {})
    params = NetworkParams(conv=[4, 6, 6], max_pool=[0, 0, 1], fc=[5], **kind)
    training = TrainingParams(epochs=1, lr_start=1e-2, lr_end=1e-2)
    data = load_data("digits")
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    network.fit(data.x_train[:300], data.y_train[:300])
    path = tmp_path_factory.mktemp("run") / "network.keras"
    network.save(path)
    record(path.parent, "digits")
    return path


def record(folder, data_set):
    """What run_bnn.py records of a run on a data set."""
    write_json(folder / "run.json", {"data_set": data_set, "data_md5": data_md5(data_set)})


def test_the_report_is_stored_with_its_checkpoint_alone(checkpoint, capsys):
    assert report.stored_report(checkpoint) is None
    report.main([str(checkpoint), "--images", "120"])
    assert "conditions on this network hold." in capsys.readouterr().out
    folder = checkpoint.parent
    stored, summary = (
        report.stored_report(checkpoint),
        json.loads((folder / "report.json").read_text()),
    )
    assert summary["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert summary["test_images"] == 120
    assert [vars(claim) for claim in stored.claims()] == summary["claims"]
    assert stored.summary() | {"claims": summary["claims"]} == summary
    assert (folder / "report.md").read_text() == report.report_text(summary)
    page = (folder / "report.html").read_text()
    shown = {path.stem for path in (folder / "figures").glob("*.png")}
    assert shown >= {"weights_dot", "permutation", "rotation", "substitution", "filters"}
    for name in shown:
        assert all(html.escape(text, quote=False) in html.unescape(page) for text in CAPTIONS[name])
    assert page.count("data:image/png;base64,") == len(shown)
    assert not re.search(r'(src|href)="(?!data:)', page)
    before = {path: path.read_bytes() for path in folder.glob("report.[jmh]*")}
    (folder / "report.md").unlink()
    report.main([str(checkpoint), "--rejudge"])
    assert {path: path.read_bytes() for path in before} == before
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        report.main([str(checkpoint), "--images", "119"])
    refusal = f"{folder / 'report.json'} was measured on 120 images"
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"report.py: error: {refusal}: --overwrite replaces it by one of 119\n"
    )
    assert {path: path.read_bytes() for path in before} == before
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
    summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert stored.summary() | {"claims": summary["claims"]} == summary


@pytest.mark.parametrize(
    "path", [*RESULTS.glob("*/report.json")], ids=lambda path: path.parent.name
)
def test_the_published_reports_are_judged_by_todays_conditions(path):
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert [vars(claim) for claim in claims.judge(summary)] == summary["claims"]
    assert report.report_text(summary) == path.with_name("report.md").read_text(encoding="utf-8")


def test_layers_of_ternary_networks_are_read_from_their_reports(tmp_path):
    params = NetworkParams(conv=[4, 5], max_pool=[0, 1], fc=[], levels=3)
    x = load_data("digits").x_test[:20]
    measured = measure.measure_network(BinaryNeuralNetwork((8, 8, 1), 10, params), x, x)
    about = {"data_set": "digits", "network_params": dataclasses.asdict(params)}
    summary = report.Report("", about, measured, {}, {}).summary()
    for name, levels in (("two", 2), ("three", 3), ("three_seed1", 3), ("three_seed2", 3)):
        own = {**summary["network_params"], "levels": levels}
        write_json(tmp_path / name / "report.json", summary | {"network_params": own})
    networks = report.ternary_layers(tmp_path)
    (name,) = networks
    assert name == "digits, 4 filters, t = 0.02, activations 0.02"
    for (tau, angle, zeros), layer in zip(networks[name], 3 * [measured[1]], strict=True):
        assert tau == pytest.approx(layer.tau)
        assert angle == pytest.approx(layer.angles.mean())
        assert zeros == np.mean(layer.wb == 0)


def test_the_published_ternary_networks_are_told_apart():
    networks = report.ternary_layers(RESULTS)
    assert "cifar-10, 128 filters, t = 0.02, activations 0.02" in networks
    assert "cifar-10, 64 filters, t = 0.612σ, activations 0.612" in networks
    assert all(points.shape[1] == 3 for points in networks.values())


def untrained(folder, in_dim):
    path = folder / "network.keras"
    BinaryNeuralNetwork(in_dim, 10, NetworkParams(conv=[2], max_pool=[0], fc=[])).save(path)
    record(folder, {shape: name for name, shape in IMAGE_SHAPES.items()}[in_dim])
    return path


MNIST = {"data_set": "MNIST", "data_md5": data_md5("MNIST")}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (MNIST, None),
        (MNIST | {"data_md5": {"train": "0"}}, "the run's MNIST had other files"),
        (MNIST | {"data_set": "cifar-10"}, "had other files"),
        ({"data_set": "digits", "data_md5": data_md5("digits")}, "but digits has"),
        (MNIST | {"data_set": "unknown"}, "unknown data set 'unknown': choose one of"),
        (MNIST | {"data_set": 3}, "unknown data set 3"),
        (MNIST | {"data_set": "gone.npz"}, "there is no data set gone.npz"),
        ({"data_set": "MNIST"}, "does not tell what .* was trained on: name it with --data_set"),
        ([], "does not tell"),
        (None, "does not tell"),
    ],
)
def test_the_data_set_is_the_one_that_the_run_recorded(run, message, tmp_path):
    if run is not None:
        write_json(tmp_path / "run.json", run)
    path = tmp_path / "network.keras"
    if message is None:
        assert report.data_set_of_run(path, [28, 28, 1]) == "MNIST"
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        report.data_set_of_run(path, [28, 28, 1])
    assert report.data_set_of_run(path, [28, 28, 1], "MNIST") == "MNIST"


def test_a_notebook_opens_what_the_reader_means(tmp_path, monkeypatch):
    output, results = tmp_path / "output", tmp_path / "results"
    monkeypatch.delenv("BNN_CHECKPOINT", raising=False)
    monkeypatch.setattr(report, "missing_files", lambda data_set: [])

    def trained(folder, in_dim, age):
        path = untrained(folder, in_dim)
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
    # A clock that was wrong once makes no run the newest for ever; one that is wrong now, no fault.
    ahead = trained(output / "run_of_2099", (28, 28, 1), age=1e9 - 4.08e9)
    assert chosen() == newest
    for path in (newest, older):
        os.utime(path, (4.07e9, 4.07e9))
    assert chosen() == ahead
    monkeypatch.setenv("BNN_CHECKPOINT", str(older))
    assert chosen() == older


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/missing.keras"], "there is no checkpoint"),
        (["{}/text.keras"], "damaged or no checkpoint"),
        (["{}/text.keras", "--images", "0"], "--images must be at least 1"),
        (["{}/cifar.keras", "--data_dir", "{}/nothing"], "nothing"),
        (["{}/cifar.keras", "--rejudge"], "report.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    (tmp_path / "text.keras").write_text("no checkpoint")
    untrained(tmp_path, (32, 32, 3)).rename(tmp_path / "cifar.keras")
    with pytest.raises(SystemExit) as stop:
        report.main([argument.format(tmp_path) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("report.py: error:") and message in lines[0]
    assert not (tmp_path / "report.md").exists()


# --- The README's quantizer ---


@pytest.fixture
def readme():
    """The README's quantizer, registered."""
    text = (Path(report.__file__).parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(@graph_ops\.register_quantizer[^`]*)```", text)
    before = dict(graph_ops.QUANTIZERS)
    exec(block, {"graph_ops": graph_ops, "tf": tf})
    yield
    graph_ops.QUANTIZERS.clear()
    graph_ops.QUANTIZERS.update(before)


def test_the_readmes_quantizer_trains_saves_reloads_and_is_measured(readme, tmp_path, capsys):
    arguments = ["--data_set", "digits", "--quantizer", "bireal", "--conv", "4", "6"]
    arguments += ["--max_pool", "0", "1", "--fc", "8", "--epochs", "1"]
    path = tmp_path / "run" / "network.keras"
    run_bnn.main([*arguments, "--out_dir", str(tmp_path / "run"), "--debug"])
    trained = BinaryNeuralNetwork.load(path)
    assert {layer.kernel_quantizer.name for layer in trained.layers} == {"bireal"}
    assert trained.layers[1].input_quantizer.name == "bireal"
    judged = {claim.id: claim for claim in report.measure_checkpoint(path, images=30).claims()}
    assert judged["weights-dot"].holds is not None
    for own in (arguments, ["--data_set", "digits", "--param_file", str(path), "--epochs", "0"]):
        with pytest.raises(SystemExit):
            run_bnn.main([*own, "--out_dir", str(tmp_path / "new"), "--pack"])
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
