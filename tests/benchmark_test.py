"""The benchmark's bookkeeping at tiny sizes; no time decides anything here."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import bnn
from fast import precision
from tools import benchmark
from utils import NetworkParams, TrainingParams

TINY = benchmark.Plan(
    repeats=1,
    matmuls=((6, 70, 5),),
    in_dim=(8, 6, 2),
    network=NetworkParams(conv=[66, 3], max_pool=[0, 1], fc=[7]),
    images=(3, 1),
    batches=(2, 4),
    group=2,
    epoch_images=9,
)


def test_contenders_take_turns_and_the_first_call_stands_apart(monkeypatch):
    now, calls = [0.0], []
    seconds = {"a": iter([9, 1, 5, 2]), "b": iter([7, 30, 10, 20])}

    def contender(name):
        calls.append(name)
        now[0] += next(seconds[name])

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    times = benchmark.interleaved({name: lambda name=name: contender(name) for name in "ab"}, 3)
    assert "".join(calls) == "abababab"
    assert times == {"a": (9, 2, 1), "b": (7, 20, 10)}


def test_the_limits_operations_are_those_of_its_result():
    call, operations = benchmark.resident_popcounts(count=10)
    mismatches = call().numpy()
    # Each of ten words meets all resident ones, in 64 multiply-adds.
    assert operations == 10 * benchmark.RESIDENT_WORDS * 64 * 2
    assert mismatches.shape == (10,)
    # Random bits differ in half the places: sd of the mean 10.
    assert abs(mismatches.mean() - 32 * benchmark.RESIDENT_WORDS) < 60


@pytest.mark.parametrize("obstacle", [None, "none to be had"])
def test_matmul_rates_name_every_contender(obstacle):
    (row,) = benchmark.matmul_rates(TINY, obstacle)
    names = {"float32", "xnor", "limit"} | (set() if obstacle else {"bfloat16"})
    assert row.keys() == {"shape"} | names
    assert all(row[name] > 0 for name in names)
    assert ("-" in benchmark.format_matmul([row]).split()) == bool(obstacle)


def test_bfloat16_forward_is_the_network(runs_bfloat16):
    # Sums up to 256 are exact in bfloat16, and pixels of 0 and 255 are ±255.
    params = NetworkParams(conv=[4, 5], max_pool=[0, 1], fc=[6])
    network = bnn.BinaryNeuralNetwork((4, 4, 1), 3, params)
    x = 255 * np.random.default_rng(0).integers(0, 2, (7, 4, 4, 1), np.uint8)
    scores = benchmark.bfloat16_forward(network)(x)
    np.testing.assert_allclose(scores, network.predict(x), rtol=1e-2, atol=1e-2)


def test_inference_rows_tell_bytes_and_equality():
    rows = benchmark.inference_rates(TINY, "no bfloat16")
    assert [(row["kind"], row["batch"]) for row in rows] == [
        ("binary", 3),
        ("binary", 1),
        ("ternary", 3),
        ("ternary", 1),
    ]
    weights = 18 * 66 + 9 * 66 * 3 + 36 * 7 + 70
    for row in rows:
        assert row["equal"]
        assert row["float32_bytes"] == 4 * weights
        assert row["packed_bytes"] > weights / 8
        assert row["images_per_s"].keys() == row["first_call_s"].keys() == {"float32", "packed"}
    assert rows[2]["packed_bytes"] > rows[0]["packed_bytes"]
    assert "NO" not in benchmark.format_inference(rows)
    assert "NO" in benchmark.format_inference([{**rows[0], "equal": False}])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gradient_tape/conv_1/Conv2DBackpropFilter:Conv2DBackpropFilter", "backward"),
        ("Conv2DBackpropInput_1:_MklNativeConv2DBackpropInput", "backward"),
        ("winograd/MatMul_1:_MklBatchMatMulV2", "backward"),
        ("a_inference__winograd_points_77__.3", "backward"),
        ("conv_1/Conv2D:_MklNativeConv2D", "forward"),
        ("a_inference__counted_conv2d_12__.3", "forward"),
        ("a_inference__sign_2218__.1", "element-wise"),
        ("gradient_tape/bnn/conv_2_norm/FusedBatchNormGradV3:FusedBatchNormGradV3", "batch norm"),
        ("bnn/conv_2_norm/mul_1:Mul", "batch norm"),
        ("latent_adam/clip_by_value/Minimum:Minimum", "optimizer"),
        ("fc_1/MatMul:_MklMatMul", "matmul"),
        ("conv_2_pool/MaxPool2d:_MklNativeMaxPool", "pooling"),
    ],
)
def test_kind_of_an_operation(name, kind):
    assert benchmark.kind_of(name).startswith(kind)


def test_the_command_measures_training_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "QUICK", dataclasses.replace(TINY, batches=(4,)))
    monkeypatch.setattr(benchmark, "why_no_bfloat16", lambda: "told so")
    path = tmp_path / "new" / "figures.json"
    benchmark.main(["--quick", "--parts", "training", "--json", str(path)])
    written = json.loads(path.read_text())
    assert "matmul" not in written and "inference" not in written
    measured, skipped = written["training"]
    assert measured["precision"] == "float32" and skipped["skipped"] == "told so"
    for name in ("images_per_s", "convolutions_images_per_s", "epoch_images_per_s", "peak_bytes"):
        assert measured[name] > 0
    # The profiler saw the step: every kind that this network has.
    assert all(seconds > 0 for seconds in measured["by_kind"].values())
    out = capsys.readouterr().out
    assert "mixed_bfloat16, batch 4: not measured, told so" in out
    assert str(path) in out


def killed(*args):
    os.kill(os.getpid(), signal.SIGILL)


def test_a_precision_that_kills_its_process_is_a_skipped_row(monkeypatch):
    monkeypatch.setattr(benchmark, "training_rates", killed)
    monkeypatch.setattr(precision, "bfloat16_signs", lambda: "doubtful")
    rows = benchmark.all_training_rates(dataclasses.replace(TINY, batches=(4,)))
    assert [row["skipped"] for row in rows] == ["the process that measured it died"] * 2
    assert "died" in benchmark.format_training(rows)


def test_bfloat16_is_not_trained_without_signs_of_it(monkeypatch):
    monkeypatch.setattr(benchmark, "in_child", lambda function, plan, policy, batch: policy)
    monkeypatch.setattr(precision, "bfloat16_signs", lambda: "none")
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    trained, skipped = benchmark.all_training_rates(dataclasses.replace(TINY, batches=(4,)))
    assert trained == "float32"
    assert "no fast bfloat16" in skipped["skipped"]


@pytest.mark.parametrize(("speedup", "word"), [(0.0, "kills"), (0.1, "0.10 ×"), (0.9, None)])
def test_bfloat16_is_left_out_for_a_reason(speedup, word, monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: speedup)
    reason = benchmark.why_no_bfloat16()
    assert reason is None if word is None else word in reason


def test_an_unwritable_file_is_one_line_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "matmul_rates", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--json", str(tmp_path / "file" / "figures.json")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m tools.benchmark: error: ") and error.count("\n") == 1


@pytest.mark.parametrize("flags", [["--parts", "nothing"], ["--slow"], ["--json"]])
def test_wrong_flags_end_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(flags)
    assert stop.value.code == 2
    assert "tools.benchmark: error: " in capsys.readouterr().err


def test_the_estimate_is_that_of_the_whole_training(monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", TINY)
    monkeypatch.setattr(benchmark, "in_child", lambda *args: {"epoch_images_per_s": 50.0})
    line = benchmark.estimate(TrainingParams(epochs=9, batch_size=4), 1000)
    assert line.startswith("9 epochs of 1,000 images at 50 images/s: about 0.1 hours")
