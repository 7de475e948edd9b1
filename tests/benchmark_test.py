"""The benchmark's bookkeeping at tiny sizes. No time decides anything here."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fast import precision
from tools import benchmark
from utils import INTERRUPTED, NetworkParams, TrainingParams

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.fixture
def no_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "may_have_fast_bfloat16", lambda: False)


def test_contenders_take_turns_and_the_first_call_stands_apart(monkeypatch):
    now, calls = [0.0], []
    seconds = {"a": iter([9, 1, 5, 2]), "b": iter([7, 30, 10, 20])}

    def contender(name):
        calls.append(name)
        now[0] += next(seconds[name])

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    times = benchmark.in_turns({name: lambda name=name: contender(name) for name in "ab"}, 3)
    assert "".join(calls) == "abababab"
    assert times == {"a": [9, 1, 5, 2], "b": [7, 30, 10, 20]}
    assert benchmark.rate(10, times["a"][1:]) == {"median": 5, "low": 2, "high": 10}


def test_the_limits_operations_are_those_of_its_result():
    call, operations = benchmark.popcount_limit(count=10)
    mismatches = call().numpy()
    # Each of ten words meets all resident ones, in 64 multiply-adds.
    assert operations == 10 * benchmark.RESIDENT_WORDS * 64 * 2
    assert mismatches.shape == (10,)
    # Random bits differ in half the places: sd of the mean 10.
    assert abs(mismatches.mean() - 32 * benchmark.RESIDENT_WORDS) < 60


def test_matmul_rows_name_every_contender():
    rows = benchmark.matmul_rows(TINY)
    assert [row["what"] for row in rows] == [
        "float32 6 × 70 × 5",
        "XNOR 6 × 70 × 5",
        "limit popcount",
    ]
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows)


def test_inference_rows_tell_bytes_and_equality():
    rows = benchmark.inference_rows(TINY)
    assert [(row["what"], row["batch"]) for row in rows] == [
        (f"{kind} network, {form}", batch)
        for kind in ("binary", "ternary")
        for batch in (3, 1)
        for form in ("float32", "packed")
    ]
    weights = 18 * 66 + 9 * 66 * 3 + 36 * 7 + 70
    assert all(row["equal scores"] for row in rows)
    assert rows[0]["bytes of weights"] == 4 * weights
    assert weights / 8 < rows[1]["bytes of weights"] < rows[5]["bytes of weights"]
    assert "NO" not in benchmark.format_rows(rows)
    assert "NO" in benchmark.format_rows([{**rows[0], "equal scores": False}])


def test_the_command_measures_training_and_keeps_other_parts(
    tmp_path, monkeypatch, capsys, no_bfloat16
):
    monkeypatch.setattr(benchmark, "QUICK", dataclasses.replace(TINY, batches=(4,)))
    path = tmp_path / "new" / "figures.json"
    path.parent.mkdir()
    earlier = [{"part": "training", "what": "old"}, {"part": "matmul", "what": "kept"}]
    path.write_text(json.dumps({"machine": benchmark.machine(), "rows": earlier}))
    benchmark.main(["--quick", "--parts", "training", "--json", str(path)])
    kept, measured = json.loads(path.read_text())["rows"]
    assert kept["what"] == "kept"
    assert measured["what"] == "training, float32" and measured["batch"] == 4
    assert measured["processor"] == benchmark.machine()["processor"]
    for name in ("median", "framework's products alone", "whole epoch", "first step s", "peak GB"):
        assert measured[name] > 0
    out = capsys.readouterr().out
    assert "framework's products alone" in out and str(path) in out


def killed(*args):
    os.kill(os.getpid(), signal.SIGILL)


def test_a_precision_that_kills_its_process_is_a_row_that_says_so(monkeypatch, no_bfloat16):
    monkeypatch.setattr(benchmark, "training_rates", killed)
    (row,) = benchmark.training_rows(dataclasses.replace(TINY, batches=(4,)))
    assert row["what"].endswith("the process died") and "median" not in row


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_child_behind(sent):
    code = """
import signal, time
from tools import benchmark
from utils import one_line_errors
if __name__ == "__main__":
    # Background jobs of a shell start with SIGINT ignored, and so would this test in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with one_line_errors("prog"):
        print("started", flush=True)
        benchmark.in_child(time.sleep, 60)
"""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options) as process:
        assert process.stdout.readline() == "started\n"
        time.sleep(2)  # Until the child sleeps, too.
        # As a terminal does on Ctrl-C; SIGTERM comes to one process alone.
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        # The output ends when the last process has closed it.
        assert process.communicate(timeout=30)[0] == "\ninterrupted\n"
    assert process.returncode == INTERRUPTED


def test_bfloat16_is_trained_where_there_may_be_some(monkeypatch, no_bfloat16):
    monkeypatch.setattr(benchmark, "in_child", lambda function, plan, policy, batch: policy)
    assert benchmark.training_rows(dataclasses.replace(TINY, batches=(4,))) == ["float32"]
    monkeypatch.setattr(precision, "may_have_fast_bfloat16", lambda: True)
    assert benchmark.training_rows(dataclasses.replace(TINY, batches=(4,)))[-1] == "mixed_bfloat16"


def peer(folder, script):
    """A peer that prints a rate, as a program of its own interpreter."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / "larq_train.py").write_text("")


def test_peers_take_turns_with_this_library(tmp_path, monkeypatch):
    peer(tmp_path, 'echo "larq $* 1: 12.5 images/s"')
    monkeypatch.setattr(benchmark, "in_child", lambda *_: {"median": 40.0})
    monkeypatch.setattr(precision, "may_have_fast_bfloat16", lambda: True)
    rows = {row["what"]: row for row in benchmark.peer_rows(TINY, tmp_path)}
    assert rows.keys() == {"here, bfloat16", "here, float32", "Larq, bfloat16", "Larq, float32"}
    assert rows["Larq, float32"]["median"] == 12.5 and rows["here, float32"]["median"] == 40
    assert all(row["batch"] == 4 for row in rows.values())


def test_a_folder_without_peers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "in_child", lambda *_: {"median": 40.0})
    with pytest.raises(ValueError, match=r"holds none of larq_train\.py, torch_train\.py"):
        benchmark.peer_rows(TINY, tmp_path)


@pytest.mark.parametrize(
    "script, reason",
    [
        ("exit 1", "failed with exit code 1 and no rate"),
        ("echo nothing", "failed with exit code 0 and no rate"),
        ("kill -ILL $$", "the process died"),
        ("sleep 20", "not done after 0.2 seconds"),
    ],
)
def test_a_contender_that_fails_is_a_row_that_says_so(
    script, reason, tmp_path, monkeypatch, no_bfloat16
):
    """In one's own library too, which trains in no precision that the machine lacks."""
    monkeypatch.setattr(benchmark, "training_rates", killed)
    monkeypatch.setattr(benchmark, "PEER_SECONDS", 0.2)
    peer(tmp_path, script)
    rows = benchmark.peer_rows(TINY, tmp_path)
    names = ("Larq, bfloat16", "Larq, float32")
    assert [row["what"] for row in rows] == [
        "here, float32: the process died",
        *(f"{name}: {reason}" for name in names),
    ]
    assert not any("median" in row for row in rows)


@pytest.mark.parametrize("content", ["", "[]", '{"machine": 1, "rows": []}'])
def test_a_file_of_another_machine_is_left_alone(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--json", str(path)])
    assert stop.value.code == 2
    assert "is of another machine" in capsys.readouterr().err
    assert path.read_text() == content


def test_an_unwritable_file_is_one_line_before_anything_is_measured(tmp_path, capsys):
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
    monkeypatch.setattr(benchmark, "in_child", lambda *args: {"whole epoch": 50.0})
    monkeypatch.setattr(precision, "choose_precision", lambda wanted: ("float32", ""))
    line = benchmark.estimate(TrainingParams(epochs=9, batch_size=4), 1000)
    assert line.startswith("9 epochs of 1,000 images at 50 images/s: about 0.1 hours")
