"""Which precision to train in: bfloat16 where it is faster and does not kill the process."""

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata

import utils  # First: its settings are read when TensorFlow is imported.
from files import write_json

# isort: split
import tensorflow as tf

# How much faster bfloat16 must be to be worth its rounding.
WORTHWHILE = 1.2
TRIAL_SECONDS = 300
ROOT = pathlib.Path(__file__).parent.parent
# Environment variables that change how TensorFlow computes.
SETTINGS = ("LD_PRELOAD", "ONEDNN", "DNNL", "OMP", "TF_", "XLA")

_ALIVE = """
import utils
import tensorflow as tf

image, kernel = tf.ones((1, 8, 8, 64), "bfloat16"), tf.ones((3, 3, 64, 64), "bfloat16")
tf.function(lambda: (tf.nn.conv2d(image, kernel, 1, "SAME"), tf.matmul(kernel, kernel)))()
"""


def _child(*arguments):
    """What Python prints with these arguments in the project's folder; None if it dies."""
    command = [sys.executable, *arguments]
    try:
        child = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None
    return child.stdout if child.returncode == 0 else None


def survives_bfloat16() -> bool:
    """Does TensorFlow survive a convolution and a matmul in bfloat16 on this machine?

    A child process tries: a virtual machine that shows AMX but not leaf 0x1D of CPUID, which
    describes its tiles, makes oneDNN die with SIGILL (oneDNN issue 5689).
    """
    return _child("-c", _ALIVE) is not None


def bfloat16_speedup() -> float:
    """Time of a training step in float32 over that in bfloat16, from `tools.step_trial`.

    The result is kept in a file of the user's cache, and measured anew when the processor, the
    settings, the versions or the code of `fast` change.

    Returns
    -------
    float
        0 if the trial was killed or took too long.
    """
    key, path = _machine(), _cache()
    kept = _read(path)
    if key not in kept:
        printed = _child("-m", "tools.step_trial")
        kept[key] = float(printed.split()[-1]) if printed else 0.0
        with contextlib.suppress(OSError):  # Without a home the next training tries again.
            write_json(path, kept)
    return kept[key]


def _cache():
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "binary-network-geometry" / "step_trial.json"


def _read(path):
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    valid = isinstance(kept, dict) and all(isinstance(value, float) for value in kept.values())
    return kept if valid else {}


def _machine():
    """All that the result of a trial depends on, as a line of text."""
    fields = cpu_fields()
    settings = sorted(item for item in os.environ.items() if item[0].startswith(SETTINGS))
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "fast").glob("*.py")))
    flags = " ".join(sorted(fields.get("flags", "").split()))
    parts = (
        fields.get("model name"),
        fields.get("cpuid level"),
        hashlib.md5(flags.encode()).hexdigest(),
        os.cpu_count(),
        *(metadata.version(name) for name in ("tensorflow", "keras")),
        hashlib.md5(code).hexdigest(),
        settings,
    )
    return ", ".join(map(str, parts))


def cpu_fields(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> dict[str, str]:
    """The fields of the last processor in a file of Linux's format; empty without the file."""
    try:
        lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)


def may_have_fast_bfloat16(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> bool:
    """False only if the processor's flags tell that it has no products in bfloat16."""
    flags = cpu_fields(cpuinfo).get("flags", "").split()
    return not flags or not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def gpu_has_bfloat16() -> bool:
    """Is there a GPU whose tensor cores take bfloat16 (compute capability 8 or more)?"""
    capabilities = (
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in tf.config.list_physical_devices("GPU")
    )
    return any(capability >= (8, 0) for capability in capabilities)


def choose_precision(wanted: str, cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> tuple[str, str]:
    """The dtype policy to train with.

    Parameters
    ----------
    wanted : {'auto', 'float32', 'mixed_bfloat16'}
    cpuinfo : path-like

    Returns
    -------
    policy : {'float32', 'mixed_bfloat16'}
    why : str

    Raises
    ------
    ValueError
        If `mixed_bfloat16` is wanted but kills a process on this machine.
    """
    if wanted == "float32":
        return wanted, "as asked for"
    if gpu_has_bfloat16():
        return "mixed_bfloat16", "the GPU has bfloat16 tensor cores"
    if wanted == "mixed_bfloat16":
        survives = survives_bfloat16()
        utils.require(
            survives, "bfloat16 kills TensorFlow on this machine: take --precision float32"
        )
        return wanted, "as asked for"
    if not may_have_fast_bfloat16(cpuinfo):
        return "float32", "the processor has no fast bfloat16"
    speedup = bfloat16_speedup()
    if not speedup:
        return "float32", "bfloat16 failed in a trial: this machine may hide half of its AMX"
    policy = "mixed_bfloat16" if speedup >= WORTHWHILE else "float32"
    return policy, f"in a trial a step in bfloat16 was {speedup:.1f} × as fast as in float32"
