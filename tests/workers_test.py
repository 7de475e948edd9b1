"""Workers on this machine, and the model of what several machines cost each other."""

import json

import pytest

from bnn import BinaryNeuralNetwork, NetworkParams
from tools import workers

# --- Workers on this machine ------------------------------------------------------------------

SCRIPT = """
import json, os, sys
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
print("weights sha256", sys.argv[1 + index])
sys.exit(int(sys.argv[3 + index]))
"""


@pytest.mark.parametrize(
    "digests, codes, last",
    [
        ("aa", "00", "2 workers ended with the same weights"),
        ("ab", "00", "2 workers ended with DIFFERENT weights"),
        ("aa", "02", "2 workers ended with the same weights"),
    ],
)
def test_local_workers_are_compared(digests, codes, last, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        workers.main(["local", "2", str(script), *digests, *codes])
    assert bool(stop.value.code) == (digests != "aa" or codes != "00")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert lines[-2] == f"worker 1 ended with exit code {codes[1]}, weights {digests[1]}"


def test_workers_that_fail_before_they_train_are_not_compared(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('told so')", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        workers.main(["local", "2", str(script)])
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "worker 1: told so"
    assert lines[1:] == [f"worker {i} ended with exit code 1, no weights" for i in range(2)]


@pytest.mark.parametrize(
    "command, message",
    [
        (["2", "nope.py"], "there is no script nope.py"),
        (["2", "."], "there is no script ."),
        (["0", "script.py"], "at least one worker, not 0"),
    ],
)
def test_nothing_starts_without_workers_or_a_script(
    command, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    (tmp_path / "script.py").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        workers.main(["local", *command])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_flags_after_the_script_are_the_scripts(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    with pytest.raises(SystemExit):
        workers.main(["local", "1", str(script), "--conv", "4", "--help"])
    assert capsys.readouterr().out.splitlines()[0] == "['--conv', '4', '--help']"


# --- How it scales ----------------------------------------------------------------------------


def test_bytes_of_the_papers_network():
    weights, units = 14_022_016, 3_850
    assert workers.summed_bytes() == 4 * (weights + units) + 16 * units
    assert workers.summed_bytes(number=2) == 2 * (weights + units) + 16 * units
    network = BinaryNeuralNetwork((8, 8, 1), 10, NetworkParams([8, 8], max_pool=[0, 1], fc=[16]))
    trainable = sum(w.numpy().size for w in network.model.trainable_variables)
    shapes = network.network_params.layer_shapes((8, 8, 1), 10)
    units = sum(units for _, units in shapes)
    assert workers.summed_bytes(shapes) == 4 * trainable + 16 * units


def test_a_ring_of_workers():
    """Two exchange as much as they sum; many, twice that; one waits for nobody."""
    seconds = workers.communication_seconds
    assert seconds(1, 1e9, 1e6, latency=1) == 0
    assert seconds(2, 8e9, 1e9) == pytest.approx(1)
    assert seconds(10**6, 8e9, 1e9) == pytest.approx(2, rel=1e-5)
    assert seconds(3, 1e99, 1e9, latency=0.5, rounds=3) == pytest.approx(2 * 2 * 3 * 0.5)


def test_the_model_of_an_epoch_and_where_it_stops_paying():
    def epochs(bits, latency=0.0):
        return {
            n: workers.epoch_seconds(n, 100, 50, bits, workers.summed_bytes(), latency)
            for n in workers.WORKERS
        }

    ideal = epochs(1e99)
    assert ideal[1] == pytest.approx(1000)
    assert ideal[64] == pytest.approx(1000 / 64)
    assert workers.paying_workers(ideal) == 64
    assert epochs(1e9)[1] == ideal[1]
    # 500 steps that each wait 2·(3/4)·56.165064 MB at 1 Gbit/s, beside 250 s of computing.
    assert epochs(1e9)[4] == pytest.approx(250 + 500 * 1.5 * 56_165_064 * 8 / 1e9)
    assert workers.paying_workers(epochs(1e9)) == 2
    assert workers.paying_workers(epochs(1e10)) == 16
    assert workers.paying_workers(epochs(1e99, latency=1.0)) == 1


def test_the_table_has_a_row_for_each_number_of_workers():
    head, _, *rows, last = workers.scaling_table(128, 60, 0.0, {"fast": 1e99, "slow": 1e6})
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *("workers", "batch per worker", "fast", "slow")
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [int(row[0]) for row in cells] == list(workers.WORKERS)
    assert cells[-1][1:3] == ["2", f"{50_000 / 60 / 60 / 64:.1f}"]
    assert [cell.strip() for cell in last.strip("|").split("|")] == ["pays up to", "", "64", "1"]


def test_the_rate_comes_from_the_benchmark(tmp_path):
    path = tmp_path / "benchmark.json"
    rows = [{"median": 40.0}, {"what": "the process died"}, {"median": 60.0}]
    rows = [{"part": "training"} | row for row in rows]
    rows.append({"part": "inference", "median": 900.0})
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert workers.measured_rate(path) == 60
    for content in ("", "[]", "{}", '{"rows": []}', '{"rows": [{"part": "training"}]}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="give --rate"):
            workers.measured_rate(path)
    with pytest.raises(ValueError, match="give --rate"):
        workers.measured_rate(tmp_path / "nowhere.json")


@pytest.mark.slow
def test_the_scaling_command_measures_and_prints(capsys):
    workers.main(["scaling", "--rate", "60"])
    lines = capsys.readouterr().out.splitlines()
    assert "56.2 MB" in lines[0]
    assert lines[-1].startswith("| pays up to |") and "measured here" in lines[2]
    assert len(lines) == 2 + 2 + len(workers.WORKERS) + 1
