"""The table of natural, attacked and verified accuracy, from files of known counts."""

import csv
import json

import numpy as np
import pytest

from bnn import BinaryNeuralNetwork, NetworkParams
from experiment_figures import plot_verified
from tools import robustness

VERDICTS = ["robust"] * 5 + ["not robust"] * 2 + ["undecided", "misclassified", "robust"]
ATTACKS = ["not fooled"] * 6 + ["fooled", "not fooled", "misclassified"]


def write(folder, epsilon=0.1, verdicts=VERDICTS, attacks=ATTACKS, predicted=0):
    folder.mkdir(parents=True)
    for name, found in (("verify", verdicts), ("attack", attacks)):
        (folder / f"{name}.json").write_text(json.dumps({"epsilon": epsilon}))
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "label", "predicted", "verdict", "seconds"])
            answer = predicted if name == "attack" else 0
            writer.writerows([i, 0, answer, v, i] for i, v in enumerate(found))


def test_only_images_in_both_tables_are_counted(tmp_path, capsys):
    write(tmp_path / "robust" / "0.1")
    write(tmp_path / "robust" / "0.3", 0.3, ["undecided"] * 9)
    robustness.main([str(tmp_path)])
    first, second = csv.DictReader((tmp_path / "accuracy.csv").read_text().splitlines())
    assert first == {
        **{"network": "robust", "epsilon": "0.1", "images": "9", "natural": "0.8889"},
        **{"attacked": "0.7778", "verified": "0.5556", "undecided": "0.1111"},
        **{"mean_seconds": "4.0", "median_seconds": "4.0", "worst_seconds": "8.0"},
    }
    assert (second["verified"], second["undecided"]) == ("0.0", "1.0")
    assert (tmp_path / "verified.png").stat().st_size > 1000
    assert "robust" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["fooled"] * 9}, "image 0 is called robust, but an attack fools it"),
        ({"predicted": 1}, "image 0 has other labels in the two tables"),
        ({"verdicts": []}, "no image was both attacked and verified"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(options, message, tmp_path, capsys):
    write(tmp_path / "robust" / "0.1", **options)
    with pytest.raises(SystemExit) as stop:
        robustness.main([str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "accuracy.csv").exists()


def test_the_geometry_of_a_checkpoint_is_that_of_its_layers(tmp_path):
    params = NetworkParams(conv=[4], max_pool=[1], fc=[], levels=3, threshold_sigma=0.6)
    network = BinaryNeuralNetwork((8, 8, 1), 10, params)
    network.save(tmp_path / "small" / "network.keras")
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    first, last = robustness.geometry_rows(tmp_path / "small" / "network.keras", x)
    wc, wb = (np.asarray(k).reshape(9, 4) for k in _kernels(network.layers[0]))
    cosines = (wc * wb).sum(0) / np.linalg.norm(wc, axis=0) / np.linalg.norm(wb, axis=0)
    assert (first["network"], first["layer"], last["layer"]) == ("small", "conv_1", "fc_1")
    assert first["zeros"] == pytest.approx(np.mean(wb == 0))
    assert first["angle"] == pytest.approx(np.degrees(np.arccos(cosines)).mean(), rel=1e-4)
    assert first["r_activations"] == "" and 0 < last["r_activations"] <= 1


def _kernels(layer):
    return layer.latent_kernel, layer.quantized_kernel()


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no NETWORK/EPSILON"):
        robustness.summaries(tmp_path)


def test_the_figure_draws_what_it_is_given():
    rows = [
        {
            "network": name,
            "epsilon": e,
            "images": 200,
            "natural": 0.98,
            "attacked": a,
            "verified": v,
        }
        for name, e, a, v in [("a", 0.3, 0.8, 0.7), ("a", 0.1, 0.95, 0.9), ("b", 0.1, 0.5, 0.25)]
    ]
    (axis,) = plot_verified(rows).axes
    first, second = (container[0] for container in axis.containers)
    np.testing.assert_allclose(first.get_xdata(), [0, 0.1, 0.3])
    np.testing.assert_allclose(first.get_ydata(), [98, 90, 70])
    np.testing.assert_allclose(second.get_ydata(), [98, 25])
