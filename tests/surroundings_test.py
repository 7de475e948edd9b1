"""A command in odd surroundings: other settings of Python, of the machine, of where it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = ("--data_set", "digits", "--epochs", "0")
SMALL = ("--conv", "4", "--max_pool", "1", "--fc")
TRAINING = ("--data_set", "digits", "--epochs", "1", *SMALL, "--precision", "float32")


def run(arguments, options=(), cwd=ROOT, stdout=subprocess.PIPE, **environment):
    """Run run_bnn.py in its own process."""
    return subprocess.run(
        [sys.executable, *options, ROOT / "run_bnn.py", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def refusal(done):
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, environment",
    [
        (["-O"], {}),
        (["-OO"], {}),
        ([], {"OMP_NUM_THREADS": "0"}),
        ([], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ([], {"PYTHONIOENCODING": "ascii"}),
    ],
    ids=["-O", "-OO", "no threads", "LC_ALL=C", "ASCII"],
)
def test_settings_of_python_change_nothing(options, environment, tmp_path):
    done = run([*EVALUATION, *SMALL], options, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "no checkpoint: nothing was trained"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_backend_is_refused():
    line = refusal(run([*EVALUATION, *SMALL], KERAS_BACKEND="jax"))
    assert line == ("run_bnn.py: error: KERAS_BACKEND is jax, but this program needs tensorflow")


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = run([*EVALUATION, *SMALL], stdout=writer)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_an_output_that_is_full_is_one_line():
    command = [sys.executable, "-m", "tools.summary"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr.count("\n") == 1 and "No space left on device" in refusal(done)


@pytest.mark.slow
def test_a_closed_output_changes_nothing(tmp_path):
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    folder = tmp_path / "run"
    command = [str(ROOT / "run_bnn.py"), *TRAINING, "--out_dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "network.keras").is_file()


def commands():
    """Every file with a command line, as the arguments of Python that start it."""
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("[a-z]*/*.py")):
        name = path.relative_to(ROOT)
        tested = name.parts[0] == "tests" or name.name == "setup.py"
        if not tested and "\nif __name__ ==" in path.read_text(encoding="utf-8"):
            own = len(name.parts) == 1 or name.parts[0] == "data"
            yield [str(name)] if own else ["-m", ".".join(name.with_suffix("").parts)]


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: command[-1])
def test_help_needs_neither_tensorflow_nor_docstrings(command, tmp_path):
    # What imports it fails.
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('TensorFlow was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for options in ([], ["-OO"]):
        done = subprocess.run(
            [sys.executable, *options, *command, "--help"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize(
    "command",
    [
        ["report.py", "{}"],
        ["attack.py", "{}", "--data_set", "digits", "--epsilon", "0.1"],
        ["verify.py", "{}", "--data_set", "digits", "--epsilon", "0.1"],
        ["survey.py", "{}", "--data_set", "digits"],
    ],
    ids=lambda command: command[0],
)
def test_a_path_of_thousands_of_characters_is_one_short_line(command):
    words = [word.format("a" * 4000) for word in command]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    line = refusal(done)
    assert "File name too long" in line and len(line) < 200


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc/run", "/sys/run", "/dev/null/run"])
def test_where_nothing_can_be_written_is_said_at_once(folder):
    # Root may write to every folder of a disk.
    line = refusal(run([*TRAINING, "--out_dir", folder]))
    assert line.startswith(f"run_bnn.py: error: cannot write to --out_dir {folder}: ")


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be made")
    try:
        line = refusal(run([*TRAINING, "--out_dir", str(tmp_path / "run")]))
        assert "No space left on device" in line
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert not {name for name in left if name.startswith(".half-written-")}
        assert "network.keras" not in left
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_link_to_nowhere_is_said_to_be_one(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "missing")
    with pytest.raises(ValueError) as refused:
        RunFolder(link).check({}, resume=False, overwrite=False)
    assert str(refused.value) == (
        f"--out_dir {link} is a link to {tmp_path / 'missing'}, which is missing"
    )
