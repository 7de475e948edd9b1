"""Parameters and commands say in one line what is wrong with them."""

import json
from pathlib import Path

import pytest

import utils
from utils import NetworkParams, TrainingParams

ROOT = Path(__file__).resolve().parent.parent


def test_one_line_errors_prints_one_line(capsys):
    with pytest.raises(SystemExit) as stop, utils.one_line_errors("prog"):
        raise ValueError("two\nlines")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "prog: error: two lines\n"


def test_one_line_errors_lets_bugs_through():
    with pytest.raises(ZeroDivisionError), utils.one_line_errors("prog"):
        raise ZeroDivisionError


def test_parameters_survive_json():
    params = NetworkParams(conv=[4, 4], max_pool=[0, 1], bin_acts=[1, 0, 1, 1, 1], levels=3)
    again = NetworkParams(**json.loads(json.dumps(params.__dict__)))
    assert again == params
    assert params.threshold == 0.02
    assert hash(params)


def test_a_stride_is_that_of_all_layers_or_of_each():
    layers = {"conv": [4, 5], "max_pool": [0, 1], "fc": [6]}
    assert NetworkParams(**layers) == NetworkParams(**layers, stride=[1, 1])
    assert NetworkParams(**layers, stride=2).strides == (2, 2)
    params = NetworkParams(**layers, stride=[2, 3])
    assert NetworkParams(**json.loads(json.dumps(params.__dict__))) == params
    # 28 → 14 → 5 → 3 by the strides 2 and 3 and the pooling.
    assert params.layer_shapes((28, 28, 1), 10)[2:] == [(3 * 3 * 5, 6), (6, 10)]


def test_one_bool_stands_for_all_layers():
    assert NetworkParams(bin_acts=[True] * 9) == NetworkParams()
    assert NetworkParams(bin_weights=False).per_layer("bin_weights") == (False,) * 9
    assert NetworkParams(bin_weights=False, bin_acts=False).kind == "continuous"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv": 128}, "conv must be a list"),
        ({"conv": [0], "max_pool": [0]}, "conv must hold whole numbers"),
        ({"conv": [1.5], "max_pool": [0]}, "conv must hold whole numbers"),
        ({"conv": [8]}, "max_pool needs one entry per conv layer: 1"),
        ({"max_pool": [0, 1, 0, 1, 0, 2]}, "max_pool must hold 0 or 1"),
        ({"fc": [-1]}, "fc must hold whole numbers"),
        ({"filter_size": 0}, "filter_size must be"),
        ({"bin_weights": [True]}, "bin_weights must be one bool, or one per layer"),
        ({"bin_acts": [2] * 9}, "bin_acts must be one bool"),
        ({"levels": 4}, "levels must be 2 or 3"),
        ({"threshold": 0.1}, "a threshold needs levels 3"),
        ({"levels": 3, "threshold": -0.1}, "threshold must be a number at least 0"),
        ({"levels": 3, "threshold": 0.1, "threshold_sigma": 0.6}, "exclude each other"),
        ({"threshold_sigma": 0.6}, "threshold_sigma needs levels 3"),
        ({"levels": 3, "threshold_sigma": float("inf")}, "threshold_sigma must be"),
        ({"levels": 3, "activation_threshold": -0.1}, "activation_threshold must be"),
        ({"activation_threshold": 0.6}, "activation_threshold needs levels 3"),
        ({"rotate_first": "no such"}, "rotate_first must be random, pca or zca"),
        (
            {"network": "no such"},
            "network must be one of paper, residual, boolnet, gru, lstm, not 'no such'",
        ),
    ],
)
def test_network_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkParams(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"epochs": -1}, "epochs must be a whole number from 0"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"lr_start": 0}, "lr_start must be a number above 0"),
        ({"lr_end": float("nan")}, "lr_end must be a number above 0"),
        ({"bn_momentum": 1.5}, "bn_momentum must be a number at least 0 and at most 1"),
        ({"loss_mode": "l2"}, "loss_mode must be"),
        ({"seed": -1}, "seed must be"),
        ({"precision": "float16"}, "precision must be"),
        ({"augment": "rotate"}, "augment must be"),
    ],
)
def test_training_parameters_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingParams(**options)


def test_learning_rate_decays_from_the_first_epoch():
    params = TrainingParams(epochs=500)
    assert params.learning_rate(0) == 1e-3
    assert params.learning_rate(250) == pytest.approx((1e-3 * 3e-7) ** 0.5)
    params = TrainingParams(epochs=40, lr_start=3e-3, lr_end=1e-3, lr_schedule="linear")
    assert [params.learning_rate(e) for e in (0, 20, 39)] == pytest.approx([3e-3, 2e-3, 1.05e-3])
