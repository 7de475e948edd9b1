"""bfloat16 is chosen where it trains faster, and refused where it kills the process."""

import json

import pytest

from fast import precision
from tools import step_trial

AMX = "amx_bf16 avx512_bf16 amx_tile"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


@pytest.fixture(autouse=True)
def no_gpu_and_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cpuinfo(tmp_path, flags):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\ncpuid level\t: 32\nflags\t\t: fpu {flags}\n\n")
    return path


@pytest.mark.parametrize(
    ("flags", "may"), [(AMX, True), ("avx512_bf16", True), ("avx2", False), ("", False)]
)
def test_what_the_flags_say(flags, may, tmp_path):
    assert precision.may_have_fast_bfloat16(cpuinfo(tmp_path, flags)) == may


def test_without_cpuinfo_a_trial_decides(tmp_path):
    assert precision.may_have_fast_bfloat16(tmp_path / "missing")


# Speedups of whole training steps: a Xeon with AMX, one that hides half of it, AMD Zen 5, AMD
# Zen 3, which has no such products.
@pytest.mark.parametrize(
    ("flags", "speedup", "policy"),
    [
        (AMX, 1.9, "mixed_bfloat16"),
        (AMX, 0.0, "float32"),
        ("avx512_bf16", 0.8, "float32"),
        ("avx512_bf16", 1.1, "float32"),
        ("avx2", None, "float32"),
    ],
)
def test_auto_takes_what_trains_fastest(flags, speedup, policy, tmp_path, monkeypatch):
    def trial():
        assert speedup is not None, "no trial was due"
        return speedup

    monkeypatch.setattr(precision, "bfloat16_speedup", trial)
    chosen, why = precision.choose_precision("auto", cpuinfo(tmp_path, flags))
    assert chosen == policy
    assert why


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(precision, "_ALIVE", "")
    assert precision.choose_precision("float32")[0] == "float32"
    assert precision.choose_precision("mixed_bfloat16")[0] == "mixed_bfloat16"


def test_a_machine_that_kills_bfloat16_refuses_it(monkeypatch):
    monkeypatch.setattr(precision, "_ALIVE", KILLED)
    with pytest.raises(ValueError, match="kills TensorFlow on this machine"):
        precision.choose_precision("mixed_bfloat16")


def test_a_killed_trial_counts_as_no_speedup(monkeypatch):
    child = precision._child
    monkeypatch.setattr(precision, "_child", lambda *_: child("-c", KILLED))
    assert precision.bfloat16_speedup() == 0


def test_a_trial_is_kept_for_this_machine(monkeypatch):
    trials = []
    monkeypatch.setattr(precision, "_child", lambda *command: trials.append(command) or "1.5\n")
    assert precision.bfloat16_speedup() == precision.bfloat16_speedup() == 1.5
    assert len(trials) == 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    precision.bfloat16_speedup()
    assert len(trials) == 2


@pytest.mark.parametrize("content", ["not json", "[1]", '{"a": "b"}', None])
def test_a_damaged_cache_is_measured_anew(content, monkeypatch):
    monkeypatch.setattr(precision, "_child", lambda *_: "2.5")
    path = precision._cache()
    path.parent.mkdir(parents=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    assert precision.bfloat16_speedup() == 2.5
    if content is not None:
        assert list(json.loads(path.read_text()).values()) == [2.5]


def test_the_trial_times_whole_training_steps(runs_bfloat16, monkeypatch):
    monkeypatch.setattr(step_trial, "STEPS", 1)
    assert step_trial.speedup(filters=4, batch=2) > 0
