"""bfloat16 is chosen where it is fast, and refused where it kills the process."""

import pytest

from fast import precision

AMX = "amx_bf16 avx512_bf16 amx_tile"


def cpuinfo(tmp_path, flags, level=32):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\ncpuid level\t: {level}\nflags\t\t: fpu {flags}\n\n")
    return path


@pytest.mark.parametrize(
    ("flags", "level", "signs"),
    [
        (AMX, 32, "fast"),
        (AMX, 28, "doubtful"),
        ("avx512_bf16", 28, "doubtful"),
        ("avx2", 13, "none"),
    ],
)
def test_what_the_feature_bits_say(flags, level, signs, tmp_path):
    assert precision.bfloat16_signs(cpuinfo(tmp_path, flags, level)) == signs


def test_without_cpuinfo_the_signs_are_doubtful(tmp_path):
    assert precision.bfloat16_signs(tmp_path / "missing") == "doubtful"


@pytest.mark.parametrize(
    ("wanted", "flags", "level", "speedup", "policy"),
    [
        ("auto", AMX, 32, None, "mixed_bfloat16"),
        ("auto", "avx2", 13, None, "float32"),
        ("auto", AMX, 28, 0.0, "float32"),
        ("auto", AMX, 28, 3.0, "mixed_bfloat16"),
        ("auto", "avx512_bf16", 28, 1.1, "float32"),
        ("mixed_bfloat16", AMX, 28, 0.7, "mixed_bfloat16"),
        ("float32", AMX, 32, None, "float32"),
    ],
)
def test_precision_follows_signs_and_trial(
    wanted, flags, level, speedup, policy, tmp_path, monkeypatch
):
    def trial():
        assert speedup is not None, "no trial was due"
        return speedup

    monkeypatch.setattr(precision, "bfloat16_speedup", trial)
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    chosen, why = precision.choose_precision(wanted, cpuinfo(tmp_path, flags, level))
    assert chosen == policy
    assert why


def test_a_killed_trial_refuses_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(
        precision, "_TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    )
    with pytest.raises(ValueError, match="kills TensorFlow on this machine"):
        precision.choose_precision("mixed_bfloat16", cpuinfo(tmp_path, AMX, 28))
    assert precision.choose_precision("auto", cpuinfo(tmp_path, AMX, 28))[0] == "float32"
