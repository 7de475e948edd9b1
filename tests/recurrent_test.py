"""The driver of recurrent networks: a row for each run and for each time step, none twice."""

import numpy as np
import pytest

from tools import recurrent
from tools.arms import rows_of


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
    assert [line.split("|")[1].strip() for line in table[2:]] == ["binary", "float"]
    recurrent.main(command)
    assert rows_of(tmp_path / "recurrent.csv") == runs
    # A run that was cut off before its row was written leaves nothing twice.
    (tmp_path / "recurrent.csv").unlink()
    recurrent.main(command)
    assert len(rows_of(tmp_path / "recurrent_time.csv")) == len(steps)
