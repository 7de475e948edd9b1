"""The notebooks run from top to bottom, on a network of the demo's kind."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import data_md5, load_data

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {
    "hd_figures": {"straight_through", "random_pairs", "binarized", "spread", "rotated", "bits"},
    "gen_plots": {"angles", "angle_scaling", "weights_dot", "activations_dot", "weights"},
    "roads": {"flips", "teachers", "energy", "recurrent"},
    "survey": {"survey_products", "survey_plan", "survey_harm"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "network.keras"
    data = load_data("digits")
    params = NetworkParams(conv=[8, 8], max_pool=[0, 1], fc=[16])
    training = TrainingParams(epochs=1, lr_start=3e-3)
    network = BinaryNeuralNetwork((8, 8, 1), 10, params, training)
    network.fit(data.x_train, data.y_train).save(path)
    record = {"data_set": "digits", "data_md5": data_md5("digits")}
    path.with_name("run.json").write_text(json.dumps(record), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_saves_its_figures(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    saved = {path.stem for path in (tmp_path / "output" / "figures").glob("*.png")}
    assert saved >= FIGURES[name]
    assert {path.stem for path in (tmp_path / "output" / "figures").glob("*.pdf")} == saved
    shown = [
        o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(shown) == len(saved)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "folder, variables",
    [(ROOT / "tests", {}), (ROOT, {}), (Path("/"), {"__vsc_ipynb_file__": str(ROOT / "x.ipynb")})],
    ids=["below", "beside", "VS Code"],
)
def test_a_notebook_finds_the_code(name, folder, variables, monkeypatch):
    code = [cell for cell in nbformat.read(ROOT / f"{name}.ipynb", 4).cells if cell.source]
    first = next(cell for cell in code if cell.cell_type == "code")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [])
    exec(first.source, {**variables})
    assert str(ROOT) in sys.path


def test_the_committed_notebook_shows_the_committed_report():
    notebook = nbformat.read(ROOT / "gen_plots.ipynb", as_version=4)
    (shown,) = notebook.cells[-1].outputs
    stored = ROOT / "results" / "cifar-10_binary" / "report.md"
    assert shown.data["text/markdown"] == stored.read_text(encoding="utf-8")
