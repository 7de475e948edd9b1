"""Rank correlations over several surveyed models; the committed table is what the surveys say."""

import io
import json

import numpy as np
import pytest

from tools import harm


def surveyed(seed, layers):
    """A survey whose loss grows with 1 − predicted r, but for noise; nothing else predicts it."""
    rng = np.random.default_rng(seed)

    def layer():
        r = rng.uniform(0.7, 1)
        other = {"r": r, "angle_deg": rng.uniform(), "sqnr_db": rng.uniform()}
        lost = (1 - r) * rng.uniform(0.2, 1.8)
        values = {"predicted_r": r, **other, "accuracy": 0.9 - lost}
        return {"kurtosis": rng.uniform(), "quantizers": {"sign": values}}

    made = [layer() for _ in range(layers)]
    return {"model": str(seed), "accuracy": 0.9, "quantizers": ["sign"], "layers": made}


def test_models_together_are_more_certain_than_one():
    surveys = {str(seed): surveyed(seed, 9) for seed in range(4)}
    rows = [row for row in harm.harm(surveys) if row["quantizer"] == "sign"]
    *each, together = rows
    assert together["model"] == harm.ALL and together["layers"] == 36
    rho = [row["predicted_r"][0] for row in each]
    assert min(rho) < together["predicted_r"][0] < max(rho)
    assert together["predicted_r"][1] < min(row["predicted_r"][1] for row in each)
    assert together["angle_deg"][1] > 0.01


def test_the_p_value_is_that_of_unrelated_ranks():
    p = []
    for seed in range(200):
        surveys = {str(k): surveyed(3 * seed + k, 12) for k in range(3)}
        (row,) = (row for row in harm.harm(surveys) if row["model"] == harm.ALL)
        p.append(row["sqnr_db"][1])
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_the_committed_table_is_what_the_surveys_say():
    file = io.StringIO()
    harm.write_csv(harm.harm(harm.read(sorted(harm.RESULTS.glob("*/survey.json")))), file)
    assert (harm.RESULTS / "harm.csv").read_text(encoding="utf-8") == file.getvalue()


def test_bad_input_is_answered_in_one_line(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"layers": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other.json is no survey.json"):
        harm.main([str(tmp_path / "other.json")])
    with pytest.raises(FileNotFoundError):
        harm.main([str(tmp_path / "none.json")])
