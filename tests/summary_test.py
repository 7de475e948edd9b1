"""The tables of README.md and docs/results.md say what the files under results/ say."""

import re
from pathlib import Path

import pytest

from tools import summary
from utils import write_json, write_text

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("document", "table"),
    [
        ("README.md", summary.paper_table),
        ("docs/results.md", summary.claims_table),
        ("docs/results.md", summary.costs_table),
        ("docs/results.md", summary.runs_table),
    ],
)
def test_the_documents_have_the_tables(document, table):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "\n".join(table(ROOT / "results")) in text, "paste what python -m tools.summary prints"


def layer(name, d, **other):
    """A layer that meets every bound."""
    pairs = {"r": 0.95, "inside_unit_r": 0.94}
    figures = {
        "layer": name,
        "d": d,
        "angle": 37.5,
        "angle_sd": 20 / d**0.5,
        "kurtosis_angle": 37.2,
        "peaked_angle": 37.25,
        "tau": 0.0,
        "sd_over_initial": 4.0,
        "variance_shares": [0.75],
        "weights_dot": pairs,
        "activations_dot": pairs,
        "permuted": {"r": 0.8, "inside_unit_r": 0.795},
    }
    return {**figures, **other}


def write_report(folder, layers, holds=True, accuracy=0.8712):
    claims = ("angle-scaling", "weights-dot", "activations-dot", "permutation", "first-layer")
    report = {
        "test_accuracy": accuracy,
        "claims": [{"id": name, "holds": holds} for name in (*claims, "substitution")],
        "layers": [*layers, layer("fc_1", 100, angle=50.0)],
        "rotation": {"zca": {"weights": 0.83}},
        "substitution": {each["layer"]: [0.1, accuracy - 0.01] for each in layers},
    }
    write_json(folder / "report.json", report)


def column(folder):
    """Figures of the first network of the table, by the claim before them."""
    rows = [line.strip("| ").split(" | ") for line in summary.claims_table(folder)[2:]]
    return {claim: figure for claim, _, figure, *_ in rows}


def first_layer():
    return layer("conv_1", 27, angle=31.0, sd_over_initial=1.1, weights_dot={"r": 0.56})


def test_claims_are_those_of_the_inner_layers(tmp_path):
    inner = [layer("conv_2", 1152), layer("conv_3", 2304, angle=38.0, sd_over_initial=5.0)]
    write_report(tmp_path / "cifar-10_binary", [first_layer(), *inner])
    figures = list(column(tmp_path).values())
    assert figures[:7] == [
        "87.12",
        "37.5 to 38.0",
        "0.4 to 0.9",
        "0.30 to 0.80",
        "0.25 to 0.75",
        "4.0 to 5.0",
        "−0.50",
    ]
    assert figures[7:9] == ["0.950", "0.560"]
    assert figures[10:] == ["0.94 → 0.80", "75 %; 0.560 → 0.830", "1.00"]


@pytest.mark.parametrize(
    ("other", "bold"),
    [
        ({"angle": 41.2, "kurtosis_angle": 41.0, "peaked_angle": 41.0}, ["4.1"]),
        ({"kurtosis_angle": 38.6}, ["1.10"]),
        ({"peaked_angle": 38.6}, ["1.10"]),
        ({"sd_over_initial": 1.9}, ["1.9"]),
        # A threshold turns the Gaussian angle: 33.9 degrees at 0.11.
        ({"tau": 0.11, "angle": 38.2, "kurtosis_angle": 38.0}, ["4.3"]),
        ({"tau": 0.11, "angle": 33.9, "kurtosis_angle": 33.9, "peaked_angle": 33.9}, []),
    ],
)
def test_what_misses_its_bounds_is_bold(tmp_path, other, bold):
    write_report(tmp_path / "cifar-10_binary", [first_layer(), layer("conv_2", 1152, **other)])
    cells = column(tmp_path).values()
    assert [cell.strip("*") for cell in cells if cell.startswith("**")] == bold


@pytest.mark.parametrize(("holds", "form"), [(False, r"\*\*.+\*\*"), (None, "—")])
def test_the_report_judges_the_others(tmp_path, holds, form):
    write_report(tmp_path / "MNIST_binary", [first_layer(), layer("conv_2", 1152)], holds)
    assert all(re.fullmatch(form, figure) for figure in list(column(tmp_path).values())[6:])


def test_two_seeds_share_a_column(tmp_path):
    name = tmp_path / "MNIST_binary"
    write_report(name, [first_layer(), layer("conv_2", 1152)])
    other = [first_layer(), layer("conv_2", 1152, angle=39.0)]
    write_report(name.with_name("MNIST_binary_seed1"), other, holds=False, accuracy=0.8912)
    figures = list(column(tmp_path).values())
    assert figures[:3] == ["87.12, 89.12", "37.5 to 39.0", "0.4 to 1.9"]
    assert figures[7:9] == ["**0.950**", "**0.560**"]


def test_three_seeds_have_a_spread(tmp_path):
    for suffix, accuracy in (("", 0.87), ("_seed1", 0.88), ("_seed2", 0.89)):
        folder = tmp_path / f"MNIST_binary{suffix}"
        write_report(folder, [first_layer(), layer("conv_2", 1152)], accuracy=accuracy)
    assert column(tmp_path)["test accuracy (%)"] == "88.00 ± 1.00"


def test_the_table_of_the_paper_has_its_networks_alone(tmp_path):
    for name in ("cifar-10_binary", "MNIST_binary"):
        write_report(tmp_path / name, [first_layer(), layer("conv_2", 1152)])
    head, _, first, *_ = summary.paper_table(tmp_path)
    assert head == "| quantity | paper, theory or condition | CIFAR-10, binary |"
    assert first.endswith("| 87.12 |")


def test_costs_are_of_the_twins_that_are_there(tmp_path):
    name = tmp_path / "cifar-10_binary_half"
    layers = [first_layer(), layer("conv_2", 1152, activations_dot={"r": 0.9})]
    write_report(name, layers)
    write_report(name.with_name(f"{name.name}_seed1"), layers)
    same = {"angle": 0.0, "weights_dot": {"r": 1.0}}
    twin = [layer("conv_1", 27, **same), layer("conv_2", 1152, **same)]
    write_report(tmp_path / "cifar-10_continuous_half", twin, holds=None, accuracy=0.9)
    assert summary.costs_table(tmp_path)[2:] == [
        "| binary | 37.5 | 0.950 | 0.900 | 87.12, 87.12 | 2 |",
        "| float (`--continuous`) | 0.0 | 1.000 | 0.950 | 90.00 | 1 |",
    ]


def write_run(folder, seed, accuracy, *flags):
    command = ["run_bnn.py", *flags, "--seed", str(seed), "--data_dir", "data", "--resume"]
    run = {
        "test_accuracy": accuracy,
        "data_set": "MNIST",
        "valid_size": None,
        "debug": False,
        "network_params": dict.fromkeys(flags, True) | ({"younger": None} if seed else {}),
        "training_params": {"seed": seed, "epochs": 2},
        "sittings": [{"command": command}, {"command": ["run_bnn.py", "--other"]}],
    }
    write_json(folder / "run.json", run)
    write_text(folder / "history.csv", "epoch,seconds\n0,60\n1,90\n")


def test_seeds_of_one_run_are_a_line(tmp_path):
    write_run(tmp_path / "a", 0, 0.81, "--pool", "--levels=3")
    write_run(tmp_path / "b", 1, 0.83, "--levels=3", "--pool")
    write_run(tmp_path / "c", 0, 0.9, "--continuous")
    assert summary.runs_table(tmp_path)[2:] == [
        "| `--continuous` | 0 | 2 | 90.00 | 2 |",
        "| `--pool --levels=3` | 0, 1 | 2 | 81.00, 83.00 | 2 |",
    ]


def test_an_empty_folder_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        summary.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
