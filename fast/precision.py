"""Which precision to train in: bfloat16 where it is faster and does not kill the process."""

import pathlib
import subprocess
import sys

import utils  # First: its settings are read when TensorFlow is imported.

# isort: split
import tensorflow as tf

# How much faster bfloat16 must be to be worth its rounding.
WORTHWHILE = 1.2
TRIAL_SECONDS = 120
# Leaf 0x1D of CPUID describes the tiles of AMX. A virtual machine that shows AMX but not this leaf
# makes oneDNN's bfloat16 matmul die with SIGILL (oneDNN issue 5689).
TILE_LEAF = 0x1D

_TRIAL = """
import statistics, time
import utils
import tensorflow as tf

def seconds(dtype):
    image, kernel = tf.ones((16, 16, 16, 256), dtype), tf.ones((3, 3, 256, 256), dtype)
    matrix = tf.ones((1024, 1024), dtype)
    step = tf.function(lambda: (tf.nn.conv2d(image, kernel, 1, "SAME"), tf.matmul(matrix, matrix)))
    def once():
        start = time.perf_counter()
        [part.numpy() for part in step()]
        return time.perf_counter() - start
    once()
    return statistics.median(once() for _ in range(5))

print(seconds("float32") / seconds("bfloat16"))
"""


def bfloat16_speedup():
    """Time of a convolution and a matmul in float32 over that in bfloat16.

    Measured in a child process with this one's environment, so that an illegal instruction kills
    only the child.

    Returns
    -------
    float
        0 if the child died.
    """
    command = [sys.executable, "-c", _TRIAL]
    folder = pathlib.Path(__file__).parent.parent
    try:
        child = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 0.0
    return float(child.stdout.split()[-1]) if child.returncode == 0 else 0.0


def bfloat16_signs(cpuinfo="/proc/cpuinfo"):
    """What the processor's feature bits say of fast bfloat16: 'fast', 'none' or 'doubtful'.

    Parameters
    ----------
    cpuinfo : path-like
        In the format of Linux; without such a file the signs are doubtful.
    """
    try:
        lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return "doubtful"
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    if not flags:
        return "doubtful"
    if {"amx_tile", "amx_bf16"} <= set(flags):
        return "fast" if int(fields.get("cpuid level", 0)) >= TILE_LEAF else "doubtful"
    return "doubtful" if "avx512_bf16" in flags else "none"


def gpu_has_bfloat16():
    """Is there a GPU whose tensor cores take bfloat16 (compute capability 8 or more)?"""
    capabilities = (
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in tf.config.list_physical_devices("GPU")
    )
    return any(capability >= (8, 0) for capability in capabilities)


def choose_precision(wanted, cpuinfo="/proc/cpuinfo"):
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
    signs = bfloat16_signs(cpuinfo)
    if wanted == "auto" and signs == "fast":
        return "mixed_bfloat16", "the processor has AMX"
    if wanted == "auto" and signs == "none":
        return "float32", "the processor has no fast bfloat16"
    speedup = bfloat16_speedup()
    if wanted == "mixed_bfloat16":
        utils.require(
            speedup, "bfloat16 kills TensorFlow on this machine: take --precision float32"
        )
        return wanted, f"as asked for; {speedup:.1f} × the speed of float32 in a trial"
    if not speedup:
        return "float32", "a trial of bfloat16 was killed: this machine hides half of its AMX"
    policy = "mixed_bfloat16" if speedup >= WORTHWHILE else "float32"
    return policy, f"bfloat16 ran at {speedup:.1f} × the speed of float32 in a trial"
