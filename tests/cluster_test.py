"""Several workers and devices, as real processes on the loopback interface, against one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import run_bnn
from bnn import BinaryNeuralNetwork, NetworkParams, TrainingParams
from data.load_data import load_data
from distribute import cluster
from distribute.cluster import Cluster, cluster_from_environment
from tools.workers import free_ports, local_environments

ROOT = Path(__file__).parent.parent
BATCH, STEPS, SEEDS = 100, 10, 3
SIZES = {"conv": (8, 8), "max_pool": (False, True), "fc": (16,)}
# Fixed addresses where nothing is ever started.
ADDRESSES = ("10.0.0.1:2222", "10.0.0.2:2222")


# --- What each of the compared processes does -------------------------------------------------


def ten_steps(strategy, precision="float32", **params):
    """Loss of each step, final weights and quantized weights."""
    import keras

    losses = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    data = load_data("digits")
    # Three times the learning rate, and one process departs as far from itself when the images of
    # a batch are summed in another order.
    training = TrainingParams(
        batch_size=BATCH, epochs=1, lr_start=1e-3, bn_momentum=0.9, precision=precision
    )
    network = BinaryNeuralNetwork((8, 8, 1), 10, NetworkParams(**SIZES, **params), training)
    # The last, partial batch of the validation does not divide by the devices.
    valid = data.x_valid[:137], data.y_valid[:137]
    images = BATCH * STEPS
    network.fit(data.x_train[:images], data.y_train[:images], *valid, [Record()], strategy=strategy)
    counts = np.arange(1, len(losses) + 1)
    return {
        "losses": np.diff(counts * losses, prepend=0),
        "val_loss": network.history["val_loss"],
        **{f"weight_{i}": w for i, w in enumerate(network.model.get_weights())},
        **{f"sign_{i}": layer.quantized_kernel().numpy() for i, layer in enumerate(network.layers)},
    }


def any_model(strategy):
    """Loss of the epoch and of its validation, and final weights, of Keras' own layers."""
    import keras

    import training
    from graph_ops import QuantDense

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Flatten(),
            QuantDense(10, input_quantizer="clip"),
        ]
    )
    data = load_data("digits")
    x, y = data.x_train[: BATCH * STEPS] / np.float32(255), data.y_train[: BATCH * STEPS]
    params = TrainingParams(batch_size=BATCH, epochs=1, lr_start=1e-3)
    history = training.fit(model, x, y, params, (x[:137], y[:137]), strategy=strategy)
    weights = {f"weight_{i}": w for i, w in enumerate(model.get_weights())}
    return {"losses": history["loss"], "val_loss": history["val_loss"], **weights}


def accuracies(strategy):
    data = load_data("digits")
    train = data.x_train, data.y_train
    return [
        BinaryNeuralNetwork(
            (8, 8, 1),
            10,
            NetworkParams(conv=(16, 16), max_pool=(False, True), fc=(32,)),
            TrainingParams(
                batch_size=BATCH, epochs=8, lr_start=1e-2, lr_end=1e-3, bn_momentum=0.9, seed=seed
            ),
        )
        .fit(*train, strategy=strategy)
        .score(data.x_test, data.y_test)
        for seed in range(SEEDS)
    ]


def compared(devices, precisions, path):
    """Train on a cluster, on two mirrored devices or on one, and write everything to `path`."""
    import tensorflow as tf

    from distribute.devices import training_strategy

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy, what = None, devices
    if devices == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, 2 * [tf.config.LogicalDeviceConfiguration()]
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    elif devices == "workers":
        strategy, what = training_strategy(cluster_from_environment(), BATCH)
    print(f"training on {what}")
    results = {
        "continuous": ten_steps(strategy, bin_weights=False, bin_acts=False),
        "any": any_model(strategy),
        "binary": ten_steps(strategy),
    }
    for precision in precisions:
        results[precision] = ten_steps(strategy, precision)
    if devices != "mirrored":
        results["digits"] = {"accuracies": accuracies(strategy)}
    np.savez(path, **{f"{k}/{name}": v for k, part in results.items() for name, v in part.items()})


def start(devices, precisions, path, environment=None):
    command = [sys.executable, "-m", "tests.cluster_test", devices, ",".join(precisions), str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process, two workers and two mirrored devices end with, by name."""
    from fast.precision import survives_bfloat16

    precisions = ["mixed_bfloat16"] if survives_bfloat16() else []
    folder = tmp_path_factory.mktemp("compared")

    def ended(processes):
        assert [process.wait(timeout=400) for process in processes.values()] == [0] * len(processes)
        return {name: np.load(folder / f"{name}.npz") for name in processes}

    alone = {name: start(name, precisions, folder / f"{name}.npz") for name in ("one", "mirrored")}
    found = ended(alone)
    environments = local_environments(2)
    names = ("chief", "worker")
    paths = [folder / f"{name}.npz" for name in names]
    together = [
        start("workers", precisions, path, environment)
        for path, environment in zip(paths, environments, strict=True)
    ]
    return found | ended(dict(zip(names, together, strict=True)))


def arrays(file, part, kind):
    return [file[name] for name in sorted(file.files) if name.startswith(f"{part}/{kind}")]


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["mirrored", "chief"])
@pytest.mark.parametrize("part, losses", [("continuous", STEPS), ("any", 1)])
def test_devices_and_workers_train_as_one_process_does(results, devices, part, losses):
    one, several = results["one"], results[devices]
    name = f"{part}/losses"
    assert len(one[name]) == losses
    np.testing.assert_allclose(several[name], one[name], rtol=1e-4)
    np.testing.assert_allclose(several[f"{part}/val_loss"], one[f"{part}/val_loss"], rtol=1e-3)
    for a, b in zip(arrays(one, part, "weight"), arrays(several, part, "weight"), strict=True):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(a)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["mirrored", "chief"])
def test_share_of_differing_quantized_weights(results, devices, record_property):
    """Reported, not judged: signs amplify rounding. The first loss has seen no sign change."""
    one, several = (arrays(results[name], "binary", "sign") for name in ("one", devices))
    differing = sum(np.count_nonzero(a != b) for a, b in zip(one, several, strict=True))
    share = differing / sum(a.size for a in one)
    record_property("share of differing quantized weights", float(share))
    print(f"{devices}: {share:.2%} of the quantized weights differ after {STEPS} steps")
    first, own = results["one"]["binary/losses"][0], results[devices]["binary/losses"][0]
    np.testing.assert_allclose(own, first, rtol=0.02)


@pytest.mark.slow
def test_workers_end_bit_identical_in_every_precision(results):
    chief, worker = results["chief"], results["worker"]
    assert chief.files == worker.files
    # Losses come through callbacks, which are the chief's.
    for name in (name for name in chief.files if not name.endswith("/losses")):
        np.testing.assert_array_equal(chief[name], worker[name])


@pytest.mark.slow
def test_bfloat16_trains_on_workers(results):
    if "mixed_bfloat16/losses" not in results["chief"].files:
        pytest.skip("bfloat16 kills TensorFlow on this machine")
    one, several = (results[name]["mixed_bfloat16/losses"] for name in ("one", "chief"))
    assert several[-1] < several[0]
    np.testing.assert_allclose(several.mean(), one.mean(), rtol=0.1)


@pytest.mark.slow
def test_accuracy_agrees_within_its_spread(results):
    one, several = (results[name]["digits/accuracies"] for name in ("one", "chief"))
    print(f"one process {one}, two workers {several}")
    error = np.sqrt((one.var(ddof=1) + several.var(ddof=1)) / SEEDS)
    assert min(one.min(), several.min()) > 0.5
    assert abs(one.mean() - several.mean()) <= 3 * error + 0.01


def test_only_functional_models_train_on_several_devices():
    import keras
    import tensorflow as tf

    import training

    class Subclassed(keras.Model):
        def call(self, x):
            return keras.ops.sum(x, axis=(1, 2))

    x, y = np.zeros((8, 2, 2, 3), np.float32), np.zeros(8, np.int32)
    params = TrainingParams(batch_size=4, epochs=1)
    with pytest.raises(ValueError, match="is not functional"):
        training.fit(Subclassed(), x, y, params, strategy=tf.distribute.OneDeviceStrategy("CPU:0"))


# --- Shares of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [None, "flip", "crop-flip"])
@pytest.mark.parametrize("workers, local", [(2, 1), (2, 2), (1, 4)])
def test_shares_are_the_batches_of_one_process(augment, workers, local):
    from fast.batches import training_batches

    x = np.random.default_rng(0).integers(0, 256, (22, 8, 8, 1), np.uint8)
    y = np.arange(22)
    whole = [*training_batches(x, y, 8, 3, 3, 1, augment)]
    replicas = workers * local
    shares = [
        [*training_batches(x, y, 8, 3, 3, 1, augment, replicas, range(i * local, (i + 1) * local))]
        for i in range(workers)
    ]
    assert len(whole) == 4
    for step, (images, labels) in enumerate(whole):
        own = [share for one in shares for share in one[step * local : (step + 1) * local]]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in own]), images)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in own]), labels)


# --- A run, a kill and its resumption ---------------------------------------------------------

TRAINING = [
    *("--data_set", "digits", "--conv", "4", "8", "--max_pool", "0", "1", "--fc", "16"),
    *("--epochs", "8", "--batch_size", "100", "--lr_start", "3e-3", "--precision", "float32"),
]


def workers_on(folders, *flags):
    """Each worker has a folder of its own, as on machines that share none."""
    return [
        subprocess.Popen(
            [sys.executable, ROOT / "run_bnn.py", *TRAINING, "--out_dir", folder, *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for folder, environment in zip(folders, local_environments(len(folders)), strict=True)
    ]


def outputs(processes, seconds=300):
    return [process.communicate(timeout=seconds) for process in processes]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("chief"), tmp_path_factory.mktemp("worker")]
    processes = workers_on(folders)
    said = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return folders, said


@pytest.mark.slow
def test_only_the_chief_writes_and_shows_progress(uninterrupted):
    (chief, worker), ((shown, _), (quiet, _)) = uninterrupted
    names = {"network.keras", "history.csv", "run.json", "tensorboard", "figures"}
    assert {path.name for path in chief.iterdir()} == names
    assert not [*worker.iterdir()]
    assert "Epoch 8/8" in shown and "Epoch" not in quiet
    assert "training on 2 workers; this is worker 0" in shown
    assert "training on 2 workers; this is worker 1" in quiet
    digests = [
        [line for line in text.splitlines() if line.startswith(cluster.WEIGHTS)]
        for text in (shown, quiet)
    ]
    assert len(digests[0]) == 1 and digests[0] == digests[1]


def loss_of(victim, sent, folders):
    """Lose a worker after the first epoch, and return the line with which the other ends."""
    processes = workers_on(folders)
    survivor = processes[1 - victim]
    try:
        while not (folders[0] / "state.keras").exists():
            assert processes[0].poll() is None
            time.sleep(0.05)
        processes[victim].send_signal(sent)
        _, error = survivor.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
        processes[victim].communicate()
    assert survivor.returncode == 2
    assert "Traceback" not in error
    (line,) = (line for line in error.splitlines() if line.startswith("run_bnn.py: "))
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, sent", [(1, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)]
)
def test_the_others_stop_when_one_is_lost(tmp_path, victim, sent):
    line = loss_of(victim, sent, [tmp_path / "chief", tmp_path / "worker"])
    assert "stopped answering" in line and "--resume" in line
    # Whoever waits for a chief that is stopped, not dead, cannot tell who it is.
    assert f"worker {victim} (127.0.0.1:" in line or (victim, sent) == (0, signal.SIGSTOP)


@pytest.mark.slow
def test_all_resume_after_the_chief_was_killed(uninterrupted, tmp_path):
    folders = [tmp_path / "chief", tmp_path / "worker"]
    assert "worker 0 (127.0.0.1:" in loss_of(0, signal.SIGKILL, folders)
    processes = workers_on(folders, "--resume")
    said = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    rows = (folders[0] / "history.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(epoch) for epoch in range(8)]
    whole, resumed = (
        BinaryNeuralNetwork.load(folder / "network.keras").model.get_weights()
        for folder in (uninterrupted[0][0], folders[0])
    )
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_the_chief_refuses_all_refuse(uninterrupted, tmp_path):
    """A finished run is not resumed; a run that was left by another command neither."""
    folders = [uninterrupted[0][0], tmp_path]
    processes = workers_on(folders, "--resume")
    said = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert all("nothing to resume" in shown for shown, _ in said)
    processes = workers_on(folders, "--resume", "--seed", "7")
    said = outputs(processes)
    assert [process.returncode for process in processes] == [2, 2], said
    assert all("has seed 0, this command 7" in error.splitlines()[-1] for _, error in said), said


# --- TF_CONFIG --------------------------------------------------------------------------------


def tf_config(jobs={"worker": ADDRESSES}, task={"type": "worker", "index": 1}):  # noqa: B006
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": task})}


def test_the_cluster_that_tf_config_describes():
    assert cluster_from_environment(tf_config()) == Cluster(ADDRESSES, 1)
    jobs = {"worker": ADDRESSES[:1], "chief": ADDRESSES[1:]}
    assert cluster_from_environment(tf_config(jobs, {"type": "worker", "index": 0})) == Cluster(
        (ADDRESSES[1], ADDRESSES[0]), 1
    )


@pytest.mark.parametrize("text", ["", " ", "{}", '{"task": {"type": "worker", "index": 0}}'])
def test_no_cluster(text):
    assert cluster_from_environment({"TF_CONFIG": text}) is None
    assert cluster_from_environment({}) is None
    alone = tf_config({"worker": ADDRESSES[:1]}, {"type": "worker", "index": 0})
    assert cluster_from_environment(alone) is None


WRONG = {
    "no JSON": ("{'cluster'", "is not JSON"),
    "truncated": (tf_config()["TF_CONFIG"][:-2], "is not JSON"),
    "no object": ("[1]", "must be a JSON object"),
    "jobs": ('{"cluster": ["a:1", "b:1"]}', "must map jobs"),
    "addresses": (tf_config({"worker": "a:1"}), "must be a list of host:port"),
    "no port": (tf_config({"worker": ["a", "b:1"]}), "must be a list of host:port"),
    "port 0": (tf_config({"worker": ["a:0", "b:1"]}), "must be a list of host:port"),
    "port": (tf_config({"worker": ["a:70000", "b:1"]}), "must be a list of host:port"),
    "number": (tf_config({"worker": [1, "b:1"]}), "must be a list of host:port"),
    "twice": (tf_config({"worker": ["a:1", "a:1"]}), "an address twice"),
    "two chiefs": (tf_config({"chief": ["a:1", "b:1"], "worker": ["c:1"]}), "only be one chief"),
    "parameter server": (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "only chief and worker"),
    "no task": ('{"cluster": {"worker": ["a:1", "b:1"]}}', "task must name"),
    "no index": (tf_config(task={"type": "worker"}), "task must name"),
    "index": (tf_config(task={"type": "worker", "index": "1"}), "task must name"),
    "other type": (tf_config(task={"type": "chief", "index": 0}), "task must name"),
    "odd type": (tf_config(task={"type": [], "index": 0}), "task must name"),
    "own index missing": (
        tf_config(task={"type": "worker", "index": 2}),
        "task index 2 is missing from the cluster, which lists worker 0 to 1",
    ),
    "negative index": (tf_config(task={"type": "worker", "index": -1}), "is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_tf_config_gets_one_line_and_exit_code_2(name, monkeypatch, tmp_path, capsys):
    text, message = WRONG[name]
    monkeypatch.setenv("TF_CONFIG", text if isinstance(text, str) else text["TF_CONFIG"])
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*TRAINING, "--out_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(
    monkeypatch, tmp_path, capsys
):
    jobs = {"worker": [f"127.0.0.1:{port}" for port in free_ports(3)]}
    for name, value in tf_config(jobs).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        run_bnn.main([*TRAINING, "--out_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "batch_size 100 does not divide by 3 devices" in line
    assert not (tmp_path / "run").exists()


# --- The meeting ------------------------------------------------------------------------------


def local_cluster(count):
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    return [Cluster(addresses, index) for index in range(count)]


def met(clusters, seconds):
    """What the meeting of these workers, begun at the same time, ends with for each."""
    ends = {}

    def meet(one):
        try:
            one.meet(seconds)
            ends[one.index] = "met"
        except ValueError as error:
            ends[one.index] = str(error)

    threads = [threading.Thread(target=meet, args=(one,)) for one in clusters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return ends


def test_workers_meet_and_leave_their_ports_free():
    workers = local_cluster(4)
    assert met(workers, 30) == dict.fromkeys(range(4), "met")
    for worker in workers:
        cluster._listening(worker.addresses[worker.index]).close()


def test_all_name_the_worker_that_does_not_come():
    chief, here, missing = local_cluster(3)
    ends = met([chief, here], 1.5)
    assert ends[0] == ends[1]
    assert f"worker 2 ({missing.addresses[2]}) did not answer" in ends[0]


@pytest.mark.parametrize("mute", [False, True])
def test_a_worker_names_the_chief_that_does_not_answer(mute):
    _, worker = local_cluster(2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if mute:  # Takes connections and never says a word.
            address = f"127.0.0.1:{server.getsockname()[1]}"
            worker = Cluster((address, worker.addresses[1]), 1)
        assert "worker 0 (127.0.0.1:" in met([worker], 1)[1]


def test_whoever_waits_long_says_for_whom(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "NOTICE_SECONDS", 0.2)
    for one in local_cluster(2):
        other = one.name(1 - one.index)
        assert "did not answer" in met([one], 0.6)[one.index]
        assert capsys.readouterr().err == f"waiting for {other}\n"


def test_another_cluster_is_refused_by_all():
    chief, worker = local_cluster(2)
    worker = Cluster((*worker.addresses, "10.0.0.3:2222"), 1)
    ends = met([chief, worker], 30)
    assert set(ends.values()) == {
        f"{chief.name(1)} has another cluster in its TF_CONFIG than the chief"
    }


def test_the_chief_lets_strangers_go():
    chief, worker = local_cluster(2)
    host, port = chief.addresses[0].split(":")
    ends = {}
    thread = threading.Thread(target=lambda: ends.update(met([chief], 30)))
    thread.start()
    for words in (b"GET / HTTP/1.0\r\n\r\n", b"[]\n", b'{"index": []}\n', b'{"index": 9}\n', b""):
        while True:
            try:
                with socket.create_connection((host, int(port)), 5) as stranger:
                    stranger.sendall(words)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    ends.update(met([worker], 30))
    thread.join()
    assert ends == {0: "met", 1: "met"}


def test_a_taken_port_is_named():
    chief, _ = local_cluster(2)
    with socket.create_server(("", int(chief.addresses[0].split(":")[1]))):
        assert "cannot listen on 127.0.0.1:" in met([chief], 1)[0]


@pytest.mark.slow
def test_a_peer_that_never_answers_ends_the_command_within_a_minute(tmp_path):
    lonely = [local_environments(2)[index] for index in range(2)]
    command = [sys.executable, ROOT / "run_bnn.py", *TRAINING, "--out_dir", tmp_path]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for environment in lonely
    ]
    said = outputs(processes, 30 + 60)  # A busy machine takes half a minute to import TensorFlow.
    for index, (process, (_, error)) in enumerate(zip(processes, said, strict=True)):
        assert process.returncode == 2
        assert f"worker {1 - index} (127.0.0.1:" in error.splitlines()[-1]
        assert "did not answer" in error.splitlines()[-1]


def test_the_lost_worker_is_named():
    own, _ = local_cluster(2)
    assert own.lost("unhealthy:\n/job:worker/replica:0/task:1") == [1]
    assert own.lost("in function_node/job:worker/replica:0/task:0: reset") == [1]
    with socket.create_server(("127.0.0.1", int(own.addresses[1].split(":")[1]))):
        assert own.lost("timeout") == []


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    compared(sys.argv[1], filter(None, sys.argv[2].split(",")), sys.argv[3])
