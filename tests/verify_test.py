"""Exact verification beside all answers that a network can give, and what a user can do wrong."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from random_programs import SHAPES, all_images, random_program, score_table

from files import locked
from packed.program import NEVER, PixelsProduct, Product, Program, Reshape, Scores, Threshold
from utils import BAD_INPUT, INTERRUPTED, number_from, radius_of
from verification import square_search
from verification.constraints import FALSE, TRUE, Constraints
from verification.encoding import Encoding
from verification.results import NOT_ROBUST, ROBUST, UNDECIDED
from verification.workers import Worker, search_or_prove
from verify import LOCK, main, verify

ROOT = Path(__file__).parent.parent
pytest.importorskip("clingo", reason="clingo is missing: pip install -r requirements-verify.txt")


# --- Beside brute force -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 500), marks=pytest.mark.slow)], ids=len
)
def test_no_verdict_differs_from_brute_force(seeds):
    truths, ties, by_solver = [], 0, 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        image = rng.choice(np.uint8([0, 255]), SHAPES[rng.integers(len(SHAPES))])
        program, scores = random_program(rng, image)
        images, table = all_images(image), score_table(program)
        labels = scores.argmax(axis=1)
        label = int(labels[_place(images, image)])
        exists, found = search_or_prove(program, table, image, label, 1, 60)
        assert exists == bool((labels != label).any()), seed
        assert exists == (found is not None)
        if exists:
            assert labels[_place(images, found)] != label, seed
        truths.append(exists)
        best = np.sort(scores, axis=1)
        ties += bool((best[:, -1] == best[:, -2]).any())
        by_solver += not exists and bool(Encoding(program, table, image, label, 1).wins)
    # The networks are of all sorts: a test of robust ones alone would show nothing.
    assert 0.2 < np.mean(truths) < 0.8 and ties > len(seeds) / 20 and by_solver > 0


def _place(images, image):
    (place,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
    return place


def test_rounded_scores_are_told_apart_exactly():
    # Scores of two classes meet within the rounding of float32: no line separates who wins.
    weights = np.ones((4, 2), np.int8)
    weights[:, 1] = [1, 1, -1, -1]
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(200):
        norm = {
            "moving_mean": np.float32([1e6, 1e6 + rng.integers(-3, 4)]),
            "moving_variance": np.float32([0.9, 0.9 * (1 + rng.integers(-9, 9) * 1e-7)]),
            "beta": np.float32(rng.normal(size=2)),
        }
        steps = [
            Reshape("flat", (0,)),
            PixelsProduct.of_weights("fc", (1,), weights),
            Scores("norm", (2,), scale=1 / 255, **norm),
        ]
        program = Program((2, 2, 1), 2, steps)
        image = rng.integers(0, 255, (2, 2, 1)).astype(np.uint8)
        table = score_table(program)
        near = [np.arange(max(0, p - 2), min(255, p + 2) + 1) for p in image.ravel().tolist()]
        box = np.stack(np.meshgrid(*near), axis=-1)
        products = (2 * box.reshape(-1, 4).astype(int) - 255) @ weights.astype(int)
        largest = len(table) // 2
        scores = np.stack([table[products[:, c] + largest, c] for c in range(2)], axis=1)
        own = (2 * image.ravel().astype(int) - 255) @ weights.astype(int)
        label = int(np.argmax([table[own[c] + largest, c] for c in range(2)]))
        expected = bool((scores.argmax(axis=1) != label).any())
        exists, _ = search_or_prove(program, table, image, label, 2, 60)
        assert exists == expected
        kinds.add(exists)
    assert kinds == {True, False}


def test_a_sum_is_true_where_it_reaches_its_bound():
    rng = np.random.default_rng(3)
    for _ in range(300):
        made = Constraints()
        pool = [TRUE, FALSE, *(made.choose() for _ in range(4))]
        literals = rng.choice(pool, 6) * rng.choice([-1, 1], 6)
        weights, bound = rng.integers(-4, 5, 6), int(rng.integers(-9, 10))
        literal = made.at_least(weights, literals, bound)
        for bits in np.ndindex(2, 2, 2, 2):
            values = {TRUE: True, **dict(zip(made.free, map(bool, bits), strict=True))}
            for variable, terms, limit in made.sums:
                total = sum(w for n, w in terms if values[abs(n)] == (n > 0))
                values[variable] = total >= limit
            reached = sum(
                w for w, n in zip(weights, literals, strict=True) if values[abs(n)] == (n > 0)
            )
            assert (values[abs(literal)] == (literal > 0)) == (reached >= bound)


# --- A network that TensorFlow runs -----------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with a small trained network, packed, and its checkpoint."""
    folder = tmp_path_factory.mktemp("digits")
    command = "--data_set digits --conv 4 --max_pool 1 --fc 8 --levels 3 --threshold_sigma 1"
    command += f" --epochs 4 --lr_start 1e-2 --pack --out_dir {folder / 'run'}"
    done = subprocess.run(
        [sys.executable, "run_bnn.py", *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def packed(digits):
    from packed import PackedNetwork

    return PackedNetwork.load(digits / "network.packed")


@pytest.fixture(scope="module")
def images():
    from data.load_data import load_data

    data = load_data("digits")
    return data.x_test, data.y_test


def command(digits, out, *more, epsilon="0.02", images="12"):
    flags = ["--data_set", "digits", "--epsilon", epsilon, "--images", images, "--out", str(out)]
    return [str(digits / "network.packed"), *flags, *more]


def rows(out):
    with open(out / "verify.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_command_writes_verdicts_and_counterexamples(digits, packed, images, tmp_path, capsys):
    main(command(digits, tmp_path, "--jobs", "2", "--time_limit", "30"))
    assert "verified accuracy" in capsys.readouterr().out
    found = rows(tmp_path)
    assert list(found[0]) == ["index", "label", "predicted", "verdict", "seconds"]
    assert [int(row["index"]) for row in found] == list(range(12))
    broken = [int(row["index"]) for row in found if row["verdict"] == NOT_ROBUST]
    with np.load(tmp_path / "counterexamples.npz") as arrays:
        assert arrays["index"].tolist() == broken and arrays["image"].dtype == np.uint8
        for index, image in zip(arrays["index"], arrays["image"], strict=True):
            assert np.abs(image.astype(int) - images[0][index]).max() <= radius_of(0.02)
            assert packed.classify(image[None])[0] != images[1][index]
            assert (tmp_path / "counterexamples" / f"{index}.png").exists()
    # Going on reads what is there, and does more images.
    before = found
    main(command(digits, tmp_path, "--resume", images="14"))
    assert rows(tmp_path)[:12] == before and len(rows(tmp_path)) == 14


def test_every_image_of_a_whole_range_is_not_robust(packed, images):
    right = np.flatnonzero(packed.classify(images[0][:40]) == images[1][:40])[:5]
    for index in right:
        verdict = verify(packed, images[0][index], int(images[1][index]), 1.0)
        assert verdict.verdict == NOT_ROBUST and verdict.counterexample is not None


def test_nothing_changes_without_a_change(packed, images):
    for image in images[0][:20]:
        predicted = int(packed.classify(image[None])[0])
        assert verify(packed, image, predicted, 0.0).verdict == ROBUST
        wrong = (predicted + 1) % 10
        assert verify(packed, image, wrong, 0.0).verdict == "misclassified"


def test_no_image_that_an_attack_fools_is_called_robust(packed, images):
    """Random images of the box: `verify` uses `square_search` itself, which would show nothing."""
    rng, robust = np.random.default_rng(0), 0
    radius = radius_of(4 / 255)
    for image, label in zip(images[0][:15], images[1][:15], strict=True):
        if verify(packed, image, int(label), 4 / 255, time_limit=10).verdict != ROBUST:
            continue
        changes = rng.choice([-radius, 0, radius], (700, *image.shape))
        attacked = np.clip(image.astype(int) + changes, 0, 255).astype(np.uint8)
        assert (packed.classify(attacked) == label).all()
        robust += 1
    assert robust


def test_a_counterexample_that_the_float_network_contradicts_is_a_fault(packed, images):
    index = np.flatnonzero(packed.classify(images[0][:40]) == images[1][:40])[0]
    image, label = images[0][index], int(images[1][index])
    agrees = lambda x: np.eye(10)[[label] * len(x)]  # noqa: E731
    with pytest.raises(RuntimeError, match="same label"):
        verify(packed, image, label, 1.0, confirm=agrees)


# --- Limits, killed solvers, Ctrl-C -----------------------------------------------------------


def hard_program():
    """A dense random network in which a proof takes long."""
    rng = np.random.default_rng(0)
    sign = lambda *shape: rng.choice(np.int8([-1, 1]), shape)  # noqa: E731
    threshold = lambda name, units, read: Threshold(  # noqa: E731
        name, (read,), upper=np.zeros(units, np.int32)
    )
    norm = {
        "moving_mean": np.zeros(2, np.float32),
        "moving_variance": np.ones(2, np.float32),
        "beta": np.float32([70, 0]),
    }
    steps = [
        Reshape("flat", (0,)),
        PixelsProduct.of_weights("one", (1,), sign(100, 100)),
        threshold("one_norm", 100, 2),
        Product.of_weights("two", (3,), sign(100, 100)),
        threshold("two_norm", 100, 4),
        Product.of_weights("three", (5,), sign(100, 2)),
        Scores("norm", (6,), **norm),
    ]
    return Program((10, 10, 1), 2, steps), np.full((10, 10, 1), 128, np.uint8)


def test_the_time_limit_holds():
    program, image = hard_program()
    start = time.perf_counter()
    assert search_or_prove(program, score_table(program), image, 0, 60, 1.0) == (None, None)
    assert time.perf_counter() - start < 10


def test_a_killed_solver_costs_one_verdict():
    program, image = hard_program()
    worker = Worker(program, score_table(program))
    worker.start()
    pid = worker.pid
    threading.Timer(2.0, os.kill, (pid, signal.SIGKILL)).start()
    assert worker(image, 0, 60, 60.0) == (None, None)
    # The next image has a process of its own again.
    assert worker(image, 0, 0, 60.0) == (False, None)
    assert worker.pid != pid
    worker.close()


def test_interrupted_command_keeps_what_is_done(digits, tmp_path):
    out = tmp_path / "out"
    argv = command(digits, out, "--time_limit", "600", epsilon="0.06", images="300")
    process = subprocess.Popen(
        [sys.executable, "verify.py", *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while not (out / "verify.csv").exists():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == INTERRUPTED and "--resume" in text
    assert 0 < len(rows(out)) < 300


# --- Wrong input ------------------------------------------------------------------------------


def test_epsilon_counts_grey_levels():
    values = {0.1: 25, 8 / 255: 8, 2 / 255: 2, 0: 0, 1: 255, 0.0039: 0}
    assert {epsilon: radius_of(epsilon) for epsilon in values} == values
    assert number_from("8/255") == 8 / 255 and number_from("0.3") == 0.3


@pytest.mark.parametrize(
    "change, reason",
    [
        (["--epsilon", "-1"], "epsilon"),
        (["--epsilon", "nan"], "epsilon"),
        (["--epsilon", "1.5"], "epsilon"),
        (["--time_limit", "0"], "time limit"),
        (["--time_limit", "inf"], "time limit"),
        (["--time_limit", "nan"], "time limit"),
        (["--images", "0"], "--images"),
        (["--jobs", "-2"], "--jobs"),
        (["--data_set", "MNIST"], "another --data_set"),
        (["--checkpoint", "nowhere.keras"], "no checkpoint"),
        (["--resume", "--overwrite"], "exclude"),
    ],
)
def test_wrong_flags_end_with_one_line(digits, tmp_path, change, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        main(command(digits, tmp_path / "out", *change))
    error = capsys.readouterr().err
    assert caught.value.code == BAD_INPUT and reason in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_packed_network_ends_with_one_line(digits, tmp_path, capsys):
    damaged = tmp_path / "damaged.packed"
    damaged.write_bytes((digits / "network.packed").read_bytes()[:-200])
    flags = ["--data_set", "digits", "--epsilon", "0.1"]
    for path, reason in (
        (digits / "network.keras", "pack it"),
        (digits / "run.json", "no packed network"),
        (damaged, "damaged"),
        (tmp_path / "missing", "there is no"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([str(path), *flags])
        error = capsys.readouterr().err
        assert caught.value.code == BAD_INPUT and reason in error and error.count("\n") == 1


def test_verdicts_are_neither_mixed_nor_lost(digits, tmp_path, capsys):
    main(command(digits, tmp_path, images="2"))
    for more, reason in (((), "--resume"), (("--resume", "--epsilon", "0.5"), "epsilon")):
        with pytest.raises(SystemExit):
            main(command(digits, tmp_path, *more, images="2"))
        assert reason in capsys.readouterr().err
    (tmp_path / "counterexamples.npz").write_bytes(b"nothing")
    with pytest.raises(SystemExit):
        main(command(digits, tmp_path, "--resume"))
    assert "damaged" in capsys.readouterr().err
    main(command(digits, tmp_path, "--overwrite", images="1"))
    assert len(rows(tmp_path)) == 1


def test_a_second_process_in_one_folder_is_refused(digits, tmp_path, capsys):
    out = tmp_path / "out"
    with locked(out / LOCK, "first"):
        with pytest.raises(SystemExit) as stop:
            main(command(digits, out))
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"verify.py: error: another process verifies in {out}: wait until it ends"
        assert stop.value.code == BAD_INPUT
    # What a dead process left is no obstacle.
    (out / LOCK).touch()
    main(command(digits, out, images="2"))
    assert len(rows(out)) == 2 and not (out / LOCK).exists()


def test_a_missing_solver_is_named(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clingo", None)
    with pytest.raises(SystemExit) as caught:
        main(command(digits, tmp_path / "out"))
    assert caught.value.code == BAD_INPUT
    assert "requirements-verify.txt" in capsys.readouterr().err


@pytest.mark.parametrize("label", [-1, 10, 2.5, True])
def test_wrong_labels_are_refused(packed, images, label):
    with pytest.raises(ValueError, match="label"):
        verify(packed, images[0][0], label, 0.1)


def test_wrong_images_are_refused(packed, images):
    for image in (images[0][0].astype(np.float32), images[0][0][:4], images[0][:2]):
        with pytest.raises(ValueError, match="image"):
            verify(packed, image, 3, 0.1)
    with pytest.raises(ValueError, match="time limit"):
        verify(packed, images[0][0], 3, 0.1, time_limit=0)


def test_the_search_stays_in_the_box():
    seen = []

    def predict(x):
        seen.append(x)
        return np.tile([1.0, 0.0], (len(x), 1))

    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    assert square_search.search(predict, image, 0, 30) is None
    assert np.abs(np.concatenate(seen).astype(int) - image).max() == 30
    # A tie counts for the first class.
    assert square_search.search(lambda x: np.zeros((len(x), 2)), image, 1, 30) is not None
    assert square_search.search(lambda x: np.zeros((len(x), 2)), image, 0, 30) is None


def test_units_that_never_change_need_no_solver():
    program, image = hard_program()
    steps = list(program.steps)
    steps[2] = Threshold("one_norm", (2,), upper=np.full(100, NEVER, np.int32))
    constant = Program(program.in_dim, 2, steps)
    made = Encoding(constant, score_table(constant), image, 0, 255)
    assert not made.constraints.sums and UNDECIDED not in made.wins
