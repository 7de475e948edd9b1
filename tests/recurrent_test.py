"""The driver of recurrent networks: a row for each run and for each time step, none twice."""

import numpy as np
import pytest
from oracles import numpy_sign
from scipy.special import expit

from bnn import BinaryNeuralNetwork, NetworkParams
from tools import recurrent
from tools.arms import rows_of


@pytest.mark.parametrize("power", [-0.5, 0.0])
def test_without_batch_norm_products_are_multiplied_by_a_power_of_the_fan_in(power):
    units, images = 5, np.random.default_rng(0).integers(0, 256, (3, 4, 6, 1)).astype(np.uint8)
    network = BinaryNeuralNetwork((4, 6, 1), 10, NetworkParams(network="gru", fc=[units]))
    model = recurrent.without_norm(network, power)
    names = ("gru_1_input", "gru_1_state", "fc_1")
    of_input, of_state, of_scores = (
        numpy_sign(model.get_layer(name).latent_kernel.numpy()) for name in names
    )
    x, h = (2 * np.float64(images[..., 0]) - 255) / 255, np.zeros((3, units))
    for row in range(4):
        a, b = x[:, row] @ of_input * 6**power, h @ of_state * units**power
        za, ra, na, zb, rb, nb = (*np.split(a, 3, axis=1), *np.split(b, 3, axis=1))
        z, r = expit(za + zb), expit(ra + rb)
        h = z * h + (1 - z) * np.tanh(na + r * nb)
    expected = h @ of_scores * units**-0.5
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)
    assert {variable.name for variable in model.trainable_variables} == {"kernel", "bias"}


def test_the_spectral_radius_is_the_mean_over_the_gates():
    turned = np.array([[0.0, -3.0], [3.0, 0.0]])
    assert recurrent.spectral_radius(np.hstack([np.diag([1.0, -2.0]), turned])) == 2.5


@pytest.mark.slow
def test_a_run_leaves_its_rows_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recurrent, "SIZES", {"digits": (100, 57, 1)})
    monkeypatch.setattr(recurrent, "UNITS", 6)
    kinds = {name: recurrent.KINDS[name] for name in ("binary", "float")}
    monkeypatch.setattr(recurrent, "KINDS", kinds)
    command = ["--seeds", "0", "--results", str(tmp_path)]
    recurrent.main(command)
    runs, steps = (rows_of(tmp_path / f"{name}.csv") for name in ("recurrent", "recurrent_time"))
    assert [row["kind"] for row in runs] == ["binary", "float"]
    assert {row["validation_images"] for row in runs} == {"57"}
    panels = recurrent.over_time(steps, "digits")
    numbers, values = panels["A·w$^c$ and A·w$^b$ of the state"]["float"]
    np.testing.assert_array_equal(numbers, range(2, 9))
    assert values.shape == (1, 7)
    drift = panels["state, with w$^c$ in the state kernel"]
    assert drift.keys() == {"binary"}
    # The state's kernel takes no part in the first state.
    assert drift["binary"][1][0, 0] == pytest.approx(1)
    table = recurrent.table(runs, "digits").splitlines()
    assert [line.split("|")[2].strip() for line in table[2:]] == ["binary", "float"]
    recurrent.main(command)
    assert rows_of(tmp_path / "recurrent.csv") == runs
    # A run that was cut off before its row was written leaves nothing twice.
    (tmp_path / "recurrent.csv").unlink()
    recurrent.main(command)
    assert len(rows_of(tmp_path / "recurrent_time.csv")) == len(steps)
