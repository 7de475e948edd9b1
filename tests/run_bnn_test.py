"""The command line as a user meets it: runs that end, runs that are killed, and wrong flags."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import report
import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams
from data.load_data import load_data
from files import HALF_WRITTEN
from flips import read_flips
from geometry_log import read_geometry
from run_folder import LOCK, RunFolder
from utils import RECIPES, TrainingParams

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--data_set", "digits", "--conv", "4", "8", "--max_pool", "0", "1", "--fc", "16"]
EPOCHS = 4
TRAINING = [*SMALL, "--epochs", str(EPOCHS), "--lr_start", "3e-3", "--lr_end", "1e-3"]


def weights(folder):
    return BinaryNeuralNetwork.load(folder / "network.keras").model.get_weights()


def rows(folder):
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_bnn.main([*TRAINING, "--out_dir", str(folder)])
    return folder


def test_a_run_leaves_what_the_notebooks_need(finished):
    assert [int(row["epoch"]) for row in rows(finished)] == list(range(EPOCHS))
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds"} <= rows(finished)[0].keys()
    assert len(list((finished / "figures").glob("*.png"))) >= 3
    assert not (finished / "state.keras").exists()
    record = json.loads((finished / "run.json").read_text())
    assert record["network_params"]["conv"] == [4, 8]
    assert record["sittings"][0]["command"][1:3] == ["--data_set", "digits"]
    assert 0 <= record["test_accuracy"] <= 1


def test_evaluating_a_checkpoint_prints_table_accuracy_and_path(finished, capsys):
    path = finished / "network.keras"
    capsys.readouterr()
    run_bnn.main(["--data_set", "digits", "--param_file", str(path), "--epochs", "0"])
    lines = capsys.readouterr().out.splitlines()
    accuracy = json.loads((finished / "run.json").read_text())["test_accuracy"]
    assert lines[-2:] == [f"test accuracy {accuracy:.4f}", str(path)]
    # In the table of the geometry and in that of the cost.
    assert sum(line.startswith(("conv_", "fc_")) for line in lines) == 2 * 4


def test_geometry_is_that_of_the_folders_last_run(tmp_path):
    command = [*SMALL, "--epochs", "1", "--out_dir", str(tmp_path)]
    run_bnn.main([*command, "--track_geometry"])
    tracked = [tmp_path / "geometry.csv", tmp_path / "figures" / "angle_history.png"]
    assert {row["epochs"] for row in read_geometry(tracked[0])} == {0, 1}
    assert tracked[1].exists()
    run_bnn.main([*command, "--overwrite"])
    assert not any(path.exists() for path in tracked)


def test_flips_are_those_of_the_folders_last_run(tmp_path):
    command = [*SMALL, "--epochs", "1", "--out_dir", str(tmp_path)]
    run_bnn.main([*command, "--track_flips"])
    steps, layers = read_flips(tmp_path / "flips.npz")
    assert steps == len(load_data("digits").x_train) // TrainingParams().batch_size
    assert list(layers) == ["conv_1", "conv_2", "fc_1", "fc_2"]
    run_bnn.main([*command, "--overwrite"])
    assert not (tmp_path / "flips.npz").exists()


def test_packing_a_checkpoint_says_what_it_gave(finished, tmp_path, capsys):
    path = tmp_path / "network.keras"
    path.write_bytes((finished / "network.keras").read_bytes())
    command = ["--data_set", "digits", "--param_file", str(path), "--epochs", "0", "--pack"]
    run_bnn.main(command)
    packed, last, _ = capsys.readouterr().out.splitlines()[-3:]
    accuracy = last.removeprefix("test accuracy ")
    size = (tmp_path / "network.packed").stat().st_size
    assert f"{size} bytes, test accuracy {accuracy}" in packed
    assert "images/s" in packed


def test_a_compact_checkpoint_opens_like_the_other(finished, tmp_path, capsys):
    path = tmp_path / "network.keras"
    path.write_bytes((finished / "network.keras").read_bytes())
    command = ["--data_set", "digits", "--epochs", "0", "--param_file"]
    run_bnn.main([*command, str(path), "--compact"])
    said, accuracy, _ = capsys.readouterr().out.splitlines()[-3:]
    compact = tmp_path / "network.compact.keras"
    assert said == f"{compact}: {compact.stat().st_size} bytes"
    run_bnn.main([*command, str(compact)])
    assert capsys.readouterr().out.splitlines()[-2] == accuracy


def test_a_finished_run_is_not_resumed(finished, capsys):
    before = {path: path.read_bytes() for path in finished.glob("*.*")}
    run_bnn.main([*TRAINING, "--out_dir", str(finished), "--resume"])
    assert "nothing to resume" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished.glob("*.*")} == before


class _Interrupt(keras.callbacks.Callback):
    """Stop in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch):
        super().__init__()
        self.stop_in = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.stop_in, 5):
            raise KeyboardInterrupt


def interrupted(folder, monkeypatch, *flags, epoch=2):
    own = run_bnn.callbacks
    with monkeypatch.context() as patch:
        patch.setattr(run_bnn, "callbacks", lambda *args: [*own(*args), _Interrupt(epoch)])
        with pytest.raises(SystemExit) as stop:
            run_bnn.main([*TRAINING, "--out_dir", str(folder), *flags])
    assert stop.value.code == 130


def test_ctrl_c_and_resume_end_with_the_same_weights(finished, tmp_path, monkeypatch, capsys):
    interrupted(tmp_path, monkeypatch)
    assert "--resume" in capsys.readouterr().out
    # A kill after the row was written, but before the state was.
    with open(tmp_path / "history.csv", "a", encoding="utf-8") as file:
        file.write("2,0.5,0.5\n3,0.")
    interrupted(tmp_path, monkeypatch, "--resume", epoch=3)
    run_bnn.main([*TRAINING, "--out_dir", str(tmp_path), "--resume"])
    assert [int(row["epoch"]) for row in rows(tmp_path)] == list(range(EPOCHS))
    for resumed, whole in zip(rows(tmp_path), rows(finished), strict=True):
        assert resumed["loss"] == whole["loss"]
        assert resumed["learning_rate"] == whole["learning_rate"]
    for resumed, whole in zip(weights(tmp_path), weights(finished), strict=True):
        np.testing.assert_array_equal(resumed, whole)
    assert len(json.loads((tmp_path / "run.json").read_text())["sittings"]) == 3


def test_another_command_does_not_resume_the_run(tmp_path, monkeypatch, capsys):
    interrupted(tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*TRAINING, "--batch_size", "10", "--out_dir", str(tmp_path), "--resume"])
    assert stop.value.code == 2
    assert "has batch_size 50, this command 10" in capsys.readouterr().err


def test_a_damaged_state_is_refused(tmp_path, monkeypatch, capsys):
    interrupted(tmp_path, monkeypatch)
    state = tmp_path / "state.keras"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*TRAINING, "--out_dir", str(tmp_path), "--resume"])
    assert stop.value.code == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_record_is_refused(content, tmp_path, capsys):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*SMALL, "--epochs", "1", "--out_dir", str(tmp_path), "--resume"])
    assert stop.value.code == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_wrong_threshold_leaves_an_earlier_run_alone(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(SystemExit):
        run_bnn.main(
            [
                *(*TRAINING, "--levels", "3", "--threshold", "0.99"),
                *("--out_dir", str(tmp_path), "--overwrite"),
            ]
        )
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_second_process_in_one_folder_is_refused(tmp_path):
    folder, record = tmp_path / "run", {"sittings": []}
    with RunFolder(folder) as first:
        first.begin(record)
        # A refusal takes nothing from the first.
        for _ in range(2):
            with (
                RunFolder(folder) as other,
                pytest.raises(ValueError, match="another process trains in "),
            ):
                other.begin(record)
    # What a killed process left is no obstacle, and is deleted.
    for left in (LOCK, f"{HALF_WRITTEN}network.keras"):
        (folder / left).touch()
    with RunFolder(folder) as third:
        third.begin(record)
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not list(folder.iterdir())


def test_without_a_run_resume_starts_afresh(tmp_path):
    run_bnn.main([*SMALL, "--epochs", "1", "--out_dir", str(tmp_path), "--resume"])
    assert len(rows(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.35, 0.6])
def test_kill_at_any_moment_and_resume(finished, tmp_path, seconds):
    command = [sys.executable, ROOT / "run_bnn.py", *TRAINING, "--out_dir", tmp_path, "--resume"]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        before = (tmp_path / "state.keras").exists() and os.stat(tmp_path / "state.keras").st_ino
        while process.poll() is None:
            state = tmp_path / "state.keras"
            if state.exists() and state.stat().st_ino != before:
                time.sleep(seconds)
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.005)
        assert process.returncode in (0, -signal.SIGKILL)
    run_bnn.main([*TRAINING, "--out_dir", str(tmp_path), "--resume"])
    assert [int(row["epoch"]) for row in rows(tmp_path)] == list(range(EPOCHS))
    for resumed, whole in zip(weights(tmp_path), weights(finished), strict=True):
        np.testing.assert_array_equal(resumed, whole)


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    run_bnn.main([*TRAINING, "--out_dir", str(tmp_path)])
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(finished)]
    for first, second in zip(weights(tmp_path), weights(finished), strict=True):
        np.testing.assert_array_equal(first, second)


def test_divergence_stops_with_a_hint(tmp_path, capsys, monkeypatch):
    import training

    monkeypatch.setattr(
        training, "squared_hinge", lambda labels, scores: float("inf") * scores[:, 0]
    )
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*TRAINING, "--out_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "not finite in epoch 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.keras"))


def test_an_own_data_set_is_trained_packed_and_reported(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (90, 1))
    x = (rng.integers(0, 60, (90, 8, 8)) + 60 * labels[..., None]).astype(np.uint8)
    path = tmp_path / "my.npz"
    arrays = {"x_train": x, "y_train": labels, "x_test": x[:40], "y_test": labels[:40]}
    np.savez(path, **arrays)
    monkeypatch.chdir(tmp_path)
    network = ["--conv", "4", "8", "--max_pool", "0", "1", "--fc", "16", "--epochs", "1"]
    run_bnn.main(["--data_set", "my.npz", *network, "--pack"])
    folder = tmp_path / "output" / "my_binary"
    record = json.loads((folder / "run.json").read_text())
    assert record["data_set"] == str(path) and list(record["data_md5"]) == ["my.npz"]
    assert (folder / "network.packed").exists()
    assert "test accuracy" in capsys.readouterr().out
    checkpoint = folder / "network.keras"
    report.main([str(checkpoint), "--images", "30"])
    assert f"on 30 test images of {path}" in (folder / "report.md").read_text()
    assert report.choose_checkpoint(tmp_path / "output", tmp_path)[0] == checkpoint
    np.savez(path, **(arrays | {"x_test": x[:39], "y_test": labels[:39]}))
    with pytest.raises(ValueError, match="had other files"):
        report.measure_checkpoint(checkpoint)


def test_flags_are_checked_before_tensorflow_is_imported():
    code = (
        "import sys, run_bnn\n"
        "try: run_bnn.main(['--conv', '8'])\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_checkpoint_keeps_its_parameters(finished, capsys):
    path = str(finished / "network.keras")
    args = run_bnn.parser().parse_args(["--param_file", path, "--conv", "4", "8"])
    assert run_bnn.network_params(args).conv == (4, 8)
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*SMALL, "--param_file", path, "--epochs", "0", "--fc", "32"])
    assert stop.value.code == 2
    assert "trained with fc (16,), the flags say (32,)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_bnn.main(["--data_set", "MNIST", "--param_file", path, "--epochs", "0"])
    assert "choose another --data_set" in capsys.readouterr().err


def test_flags_change_the_recipe():
    args = run_bnn.parser().parse_args(["--recipe", "fast", "--epochs", "3", "--seed", "2"])
    wanted = dataclasses.replace(RECIPES["fast"], epochs=3, seed=2)
    assert run_bnn.training_params(args) == wanted != RECIPES["fast"]
    args = run_bnn.parser().parse_args(["--recipe", "fast", "--augment", "none"])
    assert run_bnn.training_params(args) == dataclasses.replace(RECIPES["fast"], augment=None)


def test_defaults_are_the_published_ones():
    args = run_bnn.parser().parse_args([])
    assert run_bnn.network_params(args) == NetworkParams()
    assert run_bnn.training_params(args) == RECIPES["paper"] == TrainingParams(epochs=500)
    ternary = run_bnn.parser().parse_args(["--levels", "3"])
    assert run_bnn.network_params(ternary).threshold == 0.02
