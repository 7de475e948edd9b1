"""The driver of experiments: it trains what is missing, resumes, and tabulates."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest

import run_bnn
from bnn import BinaryNeuralNetwork
from flips import read_flips
from tools import arms

SMALL = (
    *("--data_set", "digits", "--conv", "4", "6", "--max_pool", "0", "1", "--fc", "8"),
    *("--lr_start", "3e-3", "--batch_size", "200", "--valid_size", "100"),
    *("--track_geometry", "--track_flips"),
)


@pytest.fixture
def small(monkeypatch):
    size = arms.Size(SMALL, epochs=2, images=50, bop=arms.SIZES["digits"].bop)
    monkeypatch.setitem(arms.SIZES, "half", size)


def test_a_driver_trains_what_is_missing_and_tabulates_it(small, tmp_path, capfd):
    output, results = tmp_path / "output", tmp_path / "results"
    arms.train(["baseline", "bop"], [0], output, results)
    with open(results / "roads.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["epochs"]) for row in rows] == [
        ("baseline", "0", "2"),
        ("bop", "0", "2"),
    ]
    assert [row["arm"] for row in arms.rows_of(results / "causes.csv")] == ["baseline"]
    with open(output / "baseline_seed0" / "history.csv", newline="", encoding="utf-8") as file:
        assert float(rows[0]["val_accuracy"]) == pytest.approx(
            float(list(csv.DictReader(file))[-1]["val_accuracy"]), abs=1e-4
        )
    network = BinaryNeuralNetwork.load(output / "baseline_seed0" / "network.keras")
    w = network.layers[1].latent_kernel.numpy()
    m = network.gradient_averages["conv_2"]
    assert float(rows[0]["conv_2_m_agreement"]) == pytest.approx(
        np.mean(np.sign(-m) == np.where(w >= 0, 1, -1)), abs=1e-4
    )
    counts = read_flips(output / "baseline_seed0" / "flips.npz")[1]["conv_2"]["flips"]
    assert float(rows[0]["conv_2_flipped"]) == pytest.approx(np.mean(counts > 0), abs=1e-4)
    # Bop's weights are ±1; only −m has an angle.
    assert float(rows[1]["conv_2_angle"]) == 0 < float(rows[1]["conv_2_m_angle"])

    # The same command trains nothing that is there, and adds nothing twice.
    capfd.readouterr()
    arms.train(["baseline", "bop"], [0], output, results)
    assert capfd.readouterr().out == ""
    assert len(arms.rows_of(results / "roads.csv")) == 2
    # A row that was lost comes back from the finished run.
    (results / "causes.csv").unlink()
    arms.train(["baseline"], [0], output, results)
    assert arms.rows_of(results / "causes.csv") == [arms.rows_of(results / "roads.csv")[0]]
    table = arms.markdown(results / "roads.csv").splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["baseline", "bop"]


def test_every_arm_is_a_command_and_stands_in_a_table():
    assert {arm for of in arms.TABLES.values() for arm in of} == arms.ARMS.keys()
    for arm, size in itertools.product(arms.ARMS, arms.SIZES.values()):
        words = arms.command(arm, 1, "output/arms", size)
        args = run_bnn.parser().parse_args(words[1:])
        trained = run_bnn.training_params(args)
        assert (trained.epochs, trained.seed) == (size.epochs, 1)


def test_a_table_gives_means_over_seeds_and_ranges_over_inner_layers(tmp_path):
    path = tmp_path / "table.csv"
    for seed, accuracy in enumerate((0.80, 0.81, 0.85)):
        figures = {"conv_1_r": 0.1, "conv_2_r": 0.9 + 0.01 * seed, "conv_2_m_r": 0.5, "fc_1_r": 0.2}
        arms.add_row(path, {"arm": "baseline", "seed": seed, "val_accuracy": accuracy, **figures})
    assert "82.00 ± 2.65" in arms.markdown(path)
    assert "0.900 to 0.920" in arms.markdown(path)
    assert "| 0.500 " in arms.markdown(path)
    # No column of dashes alone.
    assert "angle" not in arms.markdown(path)


def test_a_training_that_fails_ends_in_one_line(tmp_path, monkeypatch):
    digits = arms.SIZES["digits"]
    impossible = dataclasses.replace(digits, flags=("--data_set", "digits", "--fc", "0"))
    monkeypatch.setitem(arms.SIZES, "half", impossible)
    with pytest.raises(ValueError, match="baseline from seed 0 ended with exit code 2"):
        arms.train(["baseline"], [0], tmp_path, tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_flips_are_those_of_the_finished_runs_in_the_table(tmp_path):
    rows = [
        {"epochs": epoch, "layer": layer, "angle": 37, "r": 0.9, "flips": flips}
        for epoch, flips in enumerate((0.0, 0.3, 0.1))
        for layer, flips in (("conv_1", 0.9), ("conv_2", flips), ("conv_3", flips / 2))
    ]
    for arm, seed in (("baseline", 0), ("bop", 0), ("bop", 1)):
        with open(tmp_path / f"{arm}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / f"{arm}_seed{seed}").mkdir()
        (tmp_path / f"{arm}.csv").rename(tmp_path / f"{arm}_seed{seed}" / "geometry.csv")
    for arm in ("baseline", "bop"):
        arms.add_row(tmp_path / "roads.csv", {"arm": arm, "seed": 0, "val_accuracy": 0.8})
    arms.write_flips(tmp_path, tmp_path)
    arms.add_row(tmp_path / "roads.csv", {"arm": "bop", "seed": 1, "val_accuracy": 0.8})
    arms.write_flips(tmp_path, tmp_path)
    written = arms.rows_of(tmp_path / "flips.csv")
    assert len(written) == 3 * len(rows)
    flips = arms.flips_by_arm(tmp_path / "flips.csv")
    assert list(flips) == ["baseline", "bop"]
    assert flips["bop"][0] == [1, 2]
    np.testing.assert_allclose(flips["bop"][1], [[0.225, 0.075]] * 2)


def test_geometry_by_arm_is_that_of_the_inner_layers(tmp_path):
    path = tmp_path / "causes.csv"
    figures = {"conv_1_r": 0.1, "conv_2_r": 0.9, "conv_3_r": 0.8, "conv_2_m_r": 0.3, "fc_1_r": 0.2}
    angles = {"conv_2_angle": 36, "conv_3_angle": 38, "conv_2_m_angle": 70}
    for seed in range(2):
        arms.add_row(
            path, {"arm": "freeze", "seed": seed, "val_accuracy": 0.7, **figures, **angles}
        )
    found = arms.geometry_by_arm(path)
    np.testing.assert_allclose(found.pop("freeze"), [[37, 0.85, 0.7]] * 2)
    assert not found
