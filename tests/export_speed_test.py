"""The speed and the size of exported networks: a row of each contender in each turn."""

import os
import shutil

import pytest

from tools import export_speed


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("size"), reason="there is no gcc")
def test_every_contender_has_a_row_in_each_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(export_speed, "TURNS", 2)
    monkeypatch.setattr(export_speed, "COMPILERS", ("gcc",))
    before = os.sched_getaffinity(0)
    rows, sizes = export_speed.measure(tmp_path, ["demo"])
    assert os.sched_getaffinity(0) == before
    assert [(row["what"], row["turn"]) for row in rows] == [
        (what, turn) for turn in (1, 2) for what in ("C, gcc", "XLA, batch 1", "XLA, batch 100")
    ]
    assert all(row["images_per_s"] > 0 for row in rows)
    (size,) = sizes
    # One bit a weight, and thresholds and batch norm of a few hundred units.
    assert 374_592 / 8 < size["weights"] < 374_592 / 8 + 10_000
    assert 0 < size["code, -Os"] < size["code, -O3 -march=native"]


def test_a_peer_needs_its_interpreter(capsys):
    with pytest.raises(ValueError, match="--peers and --python go together"):
        export_speed.main(["--peers", "x"])
