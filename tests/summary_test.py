"""The tables of README.md and docs/results.md say what the files under results/ say."""

import re
from pathlib import Path

import pytest

from files import write_json, write_text
from tools import numbers, summary

ROOT = Path(__file__).parent.parent


def test_the_documents_say_what_stands_under_results():
    assert summary.check(ROOT) == []


def layer(name, d, **other):
    """A layer that meets every bound."""
    pairs = {"r": 0.95, "inside_unit_r": 0.94}
    figures = {
        "layer": name,
        "d": d,
        "angle": 37.5,
        "angle_sd": 20 / d**0.5,
        "spread_ratio": 1.0,
        "units": 64,
        "first": False,
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
        "claims": [
            {
                "id": name,
                "holds": holds,
                "part": "controls" if name == "permutation" else "evidence",
            }
            for name in (*claims, "substitution")
        ],
        "layers": [*layers, layer("fc_1", 100, angle=50.0)],
        "rotation": {"zca": {"weights": 0.83}},
        "substitution": {each["layer"]: [0.1, accuracy - 0.01] for each in layers},
    }
    write_json(folder / "report.json", report)
    write_history(folder, accuracy + 0.001)


def write_history(folder, accuracy):
    """Two epochs in two and a half minutes; the last one's validation accuracy counts."""
    rows = f"epoch,seconds,val_accuracy\n0,60,0.5\n1,90,{accuracy}\n"
    write_text(folder / "history.csv", rows)


def column(folder):
    """Figures of the first network of the table, by the claim before them."""
    rows = [line.strip("| ").split(" | ") for line in summary.claims_table(folder)[2:]]
    return {claim: figure for claim, _, figure, *_ in rows}


def first_layer():
    return layer("conv_1", 27, first=True, angle=31.0, sd_over_initial=1.1, weights_dot={"r": 0.56})


def test_claims_are_those_of_the_inner_layers(tmp_path):
    inner = [layer("conv_2", 1152), layer("conv_3", 2304, angle=38.0, sd_over_initial=5.0)]
    inner[1]["spread_ratio"] = 1.2
    write_report(tmp_path / "cifar-10_binary", [first_layer(), *inner])
    figures = list(column(tmp_path).values())
    assert figures[:9] == [
        "87.12",
        "87.22",
        "37.5 to 38.0",
        "0.4 to 0.9",
        "0.30 to 0.80",
        "0.25 to 0.75",
        "4.0 to 5.0",
        "1.00 to 1.20",
        "−0.50; −0.50",
    ]
    assert figures[9:11] == ["0.950", "0.560"]
    assert figures[12:] == ["0.94 → 0.80", "75 %; 0.560 → 0.830", "1.00"]


@pytest.mark.parametrize(
    ("other", "bold"),
    [
        ({"angle": 41.2, "kurtosis_angle": 41.0, "peaked_angle": 41.0}, ["4.1"]),
        ({"kurtosis_angle": 38.6}, ["1.10"]),
        # Descriptive, not judged.
        ({"peaked_angle": 38.6}, []),
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
    cells = {name: cell for name, cell in column(tmp_path).items() if "exponent" not in name}
    assert all(re.fullmatch(form, cell) for cell in list(cells.values())[7:])


def test_two_seeds_share_a_column(tmp_path):
    name = tmp_path / "MNIST_binary"
    write_report(name, [first_layer(), layer("conv_2", 1152)])
    other = [first_layer(), layer("conv_2", 1152, angle=39.0)]
    write_report(name.with_name("MNIST_binary_seed1"), other, holds=False, accuracy=0.8912)
    figures = list(column(tmp_path).values())
    assert figures[:4] == ["87.12, 89.12", "87.22, 89.22", "37.5 to 39.0", "0.4 to 1.9"]
    assert figures[9:11] == ["**0.950**", "**0.560**"]


def test_three_seeds_have_a_spread(tmp_path):
    for suffix, accuracy in (("", 0.87), ("_seed1", 0.88), ("_seed2", 0.89)):
        folder = tmp_path / f"MNIST_binary{suffix}"
        write_report(folder, [first_layer(), layer("conv_2", 1152)], accuracy=accuracy)
    assert column(tmp_path)["test accuracy (%)"] == "88.00 ± 1.00"
    assert column(tmp_path)["validation accuracy (%)"] == "88.10 ± 1.00"


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
        "| binary | 37.5 | 0.950 | 0.900 | 87.22, 87.22 | 87.12, 87.12 | 2 |",
        "| float (`--continuous`) | 0.0 | 1.000 | 0.950 | 90.10 | 90.00 | 1 |",
    ]


def test_evidence_is_counted_without_controls(tmp_path):
    write_report(tmp_path / "a", [first_layer()], holds=True)
    write_report(tmp_path / "b", [first_layer()], holds=False)
    write_report(tmp_path / "c", [first_layer()], holds=None)
    a, b = summary.evidence_table(tmp_path)[2:]
    assert a == "| `a` | 5 of 5 | |" or a == "| `a` | 5 of 5 |  |"
    names = ("angle-scaling", "weights-dot", "activations-dot", "first-layer", "substitution")
    assert b == f"| `b` | 0 of 5 | {', '.join(f'`{name}`' for name in names)} |"


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
    write_history(folder, accuracy - 0.01)


def test_seeds_of_one_run_are_a_line(tmp_path):
    write_run(tmp_path / "a", 0, 0.81, "--pool", "--levels=3")
    write_run(tmp_path / "b", 1, 0.83, "--levels=3", "--pool")
    write_run(tmp_path / "c", 0, 0.9, "--continuous")
    assert summary.runs_table(tmp_path)[2:] == [
        "| `--continuous` | 0 | 2 | 89.00 | 90.00 | 2 |",
        "| `--pool --levels=3` | 0, 1 | 2 | 80.00, 82.00 | 81.00, 83.00 | 2 |",
    ]


def test_an_empty_folder_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in ([], ["--check"]):
        with pytest.raises(SystemExit) as stopped:
            summary.main(argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


# --- Numbers of the documents ---


@pytest.fixture
def house(tmp_path):
    """A repository with two files of results, to which documents are added."""
    figures = {
        "test_accuracy": 0.88401,
        "bytes": 1_773_756,
        "seconds": 1347,
        "layers": [{"layer": "conv_2", "r": 0.9613}, {"layer": "conv_3", "r": -0.4025}],
        "claims": [{"id": "angle", "measured": "at most 12,345 off"}],
        "sha256": "a33b44",
    }
    write_json(tmp_path / "results" / "net" / "report.json", figures)
    write_text(tmp_path / "results" / "rates.csv", "what,rate\nhere,157.2\nLarq,23.4\n")
    write_text(tmp_path / "docs" / "not_measured.txt", "# Works\n500 epochs\n")
    write_text(tmp_path / "README.md", "nothing\n")
    return tmp_path


RIGHT = """# Title
r is 0.961 and −0.40 (0.9613), accuracy 88.40 %, off by 12,345.
1.77 MB or 1,773,756 bytes, in 22 min or 22.4 minutes, 5 of 6 layers, CIFAR-10, conv_33, 3×3
[arXiv 1705.07199](https://arxiv.org/abs/1705.07199) after 500 epochs; `--epochs 77`

```
code 4711
```

| what | here | Larq | here / Larq |
| --- | --- | --- | --- |
| a | 157 | 23 | 6.8 |
"""


def test_numbers_that_stand_under_results_are_found(house):
    write_text(house / "docs" / "page.md", RIGHT)
    assert numbers.unfounded(house) == []


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("0.961 and", "0.962 and", 2),
        ("88.40", "88.41", 2),
        ("12,345", "12,346", 2),
        ("0.9613", "0.9614", 2),
        ("1.77 MB", "1.78 MB", 3),
        ("22.4 minutes", "22.4 hours", 3),
        ("500 epochs", "501 epochs", 4),
        ("| 157 |", "| 158 |", 12),
        ("6.8", "7.2", 12),
        ("here / Larq", "here and Larq", 12),
        ("5 of 6 layers", "5 of 33 layers", 3),
        ("3×3", "44", 3),
    ],
)
def test_a_number_that_differs_is_named_with_its_line(house, right, wrong, line):
    assert RIGHT.count(right) == 1
    write_text(house / "docs" / "page.md", RIGHT.replace(right, wrong))
    (found,) = numbers.unfounded(house)
    assert found.startswith(f"docs/page.md:{line}: ")


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("*", ["0.961", "0.40", "157"]),
        ("net", ["0.961", "0.40"]),
        ("net/report.json:layers.conv_2*", ["0.961"]),
        ("net/report.json:layers.*.r", ["0.961", "0.40"]),
        ("rates.csv:rate", ["157"]),
        ("rates.csv:what net:test*", []),
        ("tables", ["0.40"]),
    ],
)
def test_a_comment_narrows_where_numbers_are_looked_up(house, source, kept):
    text = f"# A <!-- results: {source} -->\n0.961\n0.40\n157\n# B\n0.961 0.40 157\n"
    write_text(house / "docs" / "page.md", text)
    wrong = [entry.split(": ")[1].split()[0] for entry in numbers.unfounded(house, ["| 0.40 |"])]
    assert wrong == [number for number in ("0.961", "0.40", "157") if number not in kept]
