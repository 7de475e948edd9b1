"""Imports run one way, from the bottom of the house to its top: read from the code itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom to the top. A module imports those of earlier lines, and of its own folder.
FLOORS = (
    ("utils",),
    ("files",),
    ("geometry", "fast"),
    ("straight_through",),
    ("batch_norm",),
    ("graph_ops",),
    ("quantizers", "products"),
    ("walk",),
    ("stream", "checkpoint", "optimizers", "flips", "distribute", "data"),
    ("adversarial",),
    ("training", "packed"),
    ("export",),
    ("networks",),
    ("bnn",),
    ("plotting", "run_folder", "page"),
    ("experiment_figures",),
    ("measure", "survey_figures", "survey_inputs"),
    ("experiments", "geometry_log", "survey_measure"),
    ("claims", "survey_plan", "survey_report"),
    ("verification",),
    ("report",),
    ("survey",),
    ("verify",),
    ("examples",),
    ("run_bnn", "attack"),
    ("tools",),
)
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}


def modules():
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("*/*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if not path.name.endswith("_test.py") and room not in (
            "tests",
            "results",
            "output",
            "setup",
        ):
            yield path, room


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_every_module_has_its_floor():
    assert {room for _, room in modules()} == FLOOR.keys()


@pytest.mark.parametrize("path, room", list(modules()), ids=lambda value: str(value).split("/")[-1])
def test_a_module_imports_what_lies_below_it(path, room):
    own = {name for name in imported(path) if name in FLOOR} - {room}
    above = {name for name in own if FLOOR[name] >= FLOOR[room]}
    assert not above


def test_geometry_knows_no_tensorflow():
    for path in (ROOT / "geometry").glob("*.py"):
        assert not {"tensorflow", "keras"} & set(imported(path))
