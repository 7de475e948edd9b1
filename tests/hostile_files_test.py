"""Damaged and hostile files: refused in one line, or harmless; little memory, nothing written.

What is flipped, cut off or names code is tested beside the module that opens it. Here are files
whose parts are whole and make no sense together, or are larger than they look.
"""

import bz2
import gzip
import io
import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from example_networks import small_network

import checkpoint
import report
from bnn import BinaryNeuralNetwork, PackedNetwork
from geometry_log import read_geometry
from packed.program import Program
from run_folder import read_record

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# What a bad file may take, in kB.
MEMORY = 2**20


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The members of a good checkpoint, by name."""
    path = tmp_path_factory.mktemp("good") / "network.keras"
    small_network().save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The members of a good packed network, by name."""
    path = tmp_path_factory.mktemp("good") / "network.packed"
    PackedNetwork.from_network(small_network()).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def archived(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(opens, path):
    """The one line with which a file is refused, which names the file."""
    around = set(path.parent.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        opens(path)
    assert set(path.parent.rglob("*")) == around
    message = str(refusal.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < len(str(path)) + 500
    return message


# --- Checkpoints ------------------------------------------------------------------------------


def in_config(change):
    """Members with a changed configuration."""

    def changed(members):
        config = json.loads(members[CONFIG])
        change(config)
        return members | {CONFIG: json.dumps(config)}

    return changed


def in_network(**changes):
    return in_config(lambda c: c["config"]["network_params"].update(changes))


def in_weights(change):
    """Members with a changed HDF5 file, filled up so that its size says nothing."""

    def changed(members):
        content = io.BytesIO(members[WEIGHTS])
        with h5py.File(content, "a") as file:
            change(file)
        return members | {WEIGHTS: content.getvalue().ljust(2**16, b"\0")}

    return changed


def replaced(**options):
    """A change that puts another data set in the place of the first kernel."""

    def change(file):
        del file["layers/quant_conv2d/vars/0"]
        file["layers/quant_conv2d/vars"].create_dataset("0", **options)

    return change


def linked(link):
    def change(file):
        del file["layers/quant_conv2d/vars/0"]
        file["layers/quant_conv2d/vars/0"] = link

    return change


def elsewhere(file):
    """A kernel whose numbers lie in another file."""
    shape = file["layers/quant_conv2d/vars/0"].shape
    del file["layers/quant_conv2d/vars/0"]
    file["layers/quant_conv2d/vars"].create_dataset(
        "0", shape, np.float32, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


CHECKPOINTS = {
    "no members": lambda m: {},
    "no weights": lambda m: {CONFIG: m[CONFIG]},
    "no configuration": lambda m: {WEIGHTS: m[WEIGHTS]},
    "empty weights": lambda m: m | {WEIGHTS: b""},
    "weights of random bytes": lambda m: m | {WEIGHTS: os.urandom(2**16)},
    "half the weights": lambda m: m | {WEIGHTS: m[WEIGHTS][: len(m[WEIGHTS]) // 2].ljust(2**16)},
    "a configuration that is no JSON": lambda m: m | {CONFIG: b"{'registered_name': 1}"},
    "a configuration in UTF-16": lambda m: m | {CONFIG: m[CONFIG].decode().encode("utf-16")[1:]},
    "null": lambda m: m | {CONFIG: b"null"},
    "a list": lambda m: m | {CONFIG: b"[]"},
    "a deep list": lambda m: m | {CONFIG: b"[" * 100_000 + b"]" * 100_000},
    "a long number": lambda m: m | {CONFIG: b"9" * 100_000},
    "no config": in_config(lambda c: c.pop("config")),
    "no network_params": in_config(lambda c: c["config"].pop("network_params")),
    "no training_params": in_config(lambda c: c["config"].pop("training_params")),
    "an unknown parameter": in_network(os="system"),
    "a parameter of another type": in_network(conv={"a": 1}),
    "a quantizer that is code": in_network(quantizer="__import__('os').system('true')"),
    "a network that is a path": in_network(network="../../etc/passwd"),
    "filters in patches of terabytes": in_network(filter_size=10**4, rotate_first="pca"),
    "filters beyond all numbers": in_network(conv=[10**400, 5]),
    "a fractional filter": in_network(conv=[5.5, 5]),
    "a negative filter": in_network(conv=[-5, -5]),
    "a thousand layers": in_network(conv=[5] * 1000, max_pool=[0] * 1000),
    "images of NaN": in_config(lambda c: c["config"].update(in_dim=[float("nan")] * 3)),
    "images of words": in_config(lambda c: c["config"].update(in_dim=["9", "7", "2"])),
    "images of two axes": in_config(lambda c: c["config"].update(in_dim=[9, 7])),
    "images of minus one": in_config(lambda c: c["config"].update(in_dim=[-9, -7, 2])),
    "one class": in_config(lambda c: c["config"].update(out_dim=1)),
    "no number of classes": in_config(lambda c: c["config"].update(out_dim=None)),
    "an unknown precision": in_config(
        lambda c: c["config"]["training_params"].update(precision="float8")
    ),
    "a learning rate of NaN": in_config(
        lambda c: c["config"]["training_params"].update(lr_start=float("nan"))
    ),
    "a kernel of other shape": in_weights(replaced(data=np.zeros((2, 2), np.float32))),
    "a kernel of words": in_weights(replaced(data=[b"word"] * 90)),
    "a kernel of complex numbers": in_weights(replaced(data=np.full((3, 3, 2, 5), 1j))),
    "a kernel of infinity": in_weights(replaced(data=np.full((3, 3, 2, 5), np.inf))),
    "a kernel of terabytes": in_weights(
        replaced(shape=(2**20, 2**20), dtype="f4", chunks=(2**10, 2**10))
    ),
    "a kernel of gigabytes": in_weights(
        replaced(shape=(2**15, 2**15), dtype="f4", chunks=(2**10, 2**10), fillvalue=1)
    ),
    "a kernel that is a group": in_weights(
        lambda f: (
            f.pop("layers/quant_conv2d/vars/0"),
            f.create_group("layers/quant_conv2d/vars/0"),
        )
    ),
    "a kernel behind a link to nowhere": in_weights(linked(h5py.SoftLink("/nowhere"))),
    "a kernel behind a link to itself": in_weights(
        linked(h5py.SoftLink("/layers/quant_conv2d/vars/0"))
    ),
    "a kernel in another file": in_weights(linked(h5py.ExternalLink("/etc/passwd", "/0"))),
    "a kernel in the bytes of another file": in_weights(elsewhere),
}


@pytest.mark.filterwarnings("ignore:Skipping nested container", "ignore:Casting complex")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(name, members, tmp_path):
    path = tmp_path / "network.keras"
    archived(path, CHECKPOINTS[name](members))
    refused(BinaryNeuralNetwork.load, path)


def linked_kernel(path, good):
    """A kernel that is a link into a good file of weights beside it."""
    (path.parent / "weights.h5").write_bytes(good[WEIGHTS])
    link = h5py.ExternalLink(str(path.parent / "weights.h5"), "/layers/quant_conv2d/vars/0")
    archived(path, in_weights(linked(link))(good))


def test_no_other_file_is_read(members, tmp_path):
    path = tmp_path / "network.keras"
    linked_kernel(path, members)
    assert "weights" in refused(BinaryNeuralNetwork.load, path)


ARCHIVES = {
    "empty": lambda path, m: path.write_bytes(b""),
    "a pickle": lambda path, m: path.write_bytes(pickle.dumps({"config": 1})),
    "a gzip file": lambda path, m: path.write_bytes(gzip.compress(b"config.json")),
    "a bzip2 file": lambda path, m: path.write_bytes(bz2.compress(b"config.json")),
    "an HDF5 file": lambda path, m: path.write_bytes(m[WEIGHTS]),
    "a megabyte of zeros": lambda path, m: path.write_bytes(bytes(2**20)),
    "only a zip's end": lambda path, m: path.write_bytes(b"PK\5\6" + bytes(18)),
    "a folder": lambda path, m: path.mkdir(),
    "a pipe": lambda path, m: os.mkfifo(path),
    "a link to nowhere": lambda path, m: path.symlink_to("nowhere"),
    "a link to itself": lambda path, m: path.symlink_to(path),
    "a link to a device": lambda path, m: path.symlink_to("/dev/zero"),
    "encrypted": lambda path, m: (archived(path, m), flagged(path)),
    "a bomb in bzip2": lambda path, m: archived(
        path, m | {CONFIG: bytes(2**26 + 1)}, zipfile.ZIP_BZIP2
    ),
    "a bomb in the weights": lambda path, m: archived(
        path, m | {WEIGHTS: bytes(2**26 + 2**20)}, zipfile.ZIP_DEFLATED
    ),
}


def flagged(path):
    """Mark every member of an archive as encrypted."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 1)
    path.write_bytes(content)


@pytest.mark.parametrize("opens", [BinaryNeuralNetwork.load, checkpoint.open_model, Program.load])
@pytest.mark.parametrize("name", ARCHIVES)
def test_what_is_no_proper_archive_is_refused(name, opens, members, tmp_path):
    path = tmp_path / "network.keras"
    ARCHIVES[name](path, members)
    refused(opens, path)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "C:\\escaped"])
def test_members_with_paths_write_nothing(name, members, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    archived(folder / "network.keras", members | {name: b"content"})
    BinaryNeuralNetwork.load(folder / "network.keras")
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "network.keras"]
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("name", ["my network", "сеть", "网络", "réseau\N{SNOWMAN}", "'; $(id) #"])
def test_names_of_any_alphabet(name, members, tmp_path):
    (tmp_path / name).mkdir()
    path = tmp_path / name / f"{name}.keras"
    archived(path, members)
    (tmp_path / "link.keras").symlink_to(path)
    network = BinaryNeuralNetwork.load(tmp_path / "link.keras")
    target = tmp_path / name / f"{name} 2.keras"
    target.symlink_to(tmp_path / "behind.keras")
    network.save(target)
    assert not target.is_symlink()
    assert not (tmp_path / "behind.keras").exists()
    path.write_bytes(b"")
    refused(BinaryNeuralNetwork.load, path)


# --- Packed networks --------------------------------------------------------------------------


def in_header(change):
    """Members of a packed network with a changed header."""

    def changed(members):
        header = json.loads(np.load(io.BytesIO(members["header.npy"])).tobytes())
        change(header)
        return members | {"header.npy": npy(json.dumps(header).encode())}

    return changed


def npy(text):
    content = io.BytesIO()
    np.save(content, np.frombuffer(text, np.uint8))
    return content.getvalue()


def claimed(header):
    """Members in which the first array's own header is another text."""

    def changed(members):
        name = next(name for name in members if name != "header.npy")
        text = header.encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
        return members | {name: content + members[name][128:]}

    return changed


def in_steps(**changes):
    return in_header(lambda h: [step.update(changes) for step in h["steps"]])


PACKED = {
    "no members": lambda m: {},
    "a deep header": lambda m: m | {"header.npy": npy(b"[" * 100_000)},
    "a header of a number": lambda m: m | {"header.npy": npy(b"1")},
    "a header of half a letter": lambda m: m | {"header.npy": npy(b'"\xc3')},
    "images of all memory": in_header(lambda h: h.update(in_dim=[2**31, 2**31, 2])),
    "images of bools": in_header(lambda h: h.update(in_dim=[True, True, True])),
    "images of infinity": in_header(lambda h: h.update(in_dim=[float("inf")] * 3)),
    "classes beyond all numbers": in_header(lambda h: h.update(out_dim=10**400)),
    "ten thousand steps": in_header(lambda h: h.update(steps=[{"kind": "pool"}] * 10**4)),
    "names of numbers": in_steps(name=1),
    "inputs of words": in_steps(inputs=["0"]),
    "inputs without end": in_steps(inputs=[10**30]),
    "a kind that is a list": in_steps(kind=[]),
    "a kind of another module": in_steps(kind="os.system"),
    "an array of terabytes": claimed("{'descr':'|u1','fortran_order':False,'shape':(1<<42,)}"),
    "an array of objects": claimed("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
    "an array that is code": claimed("__import__('os').system('touch ran')"),
    "an array of negative length": claimed(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"
    ),
    "an array of records": claimed(
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (9,)}"
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_hostile_packed_network_is_refused(name, packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "network.packed"
    archived(path, PACKED[name](packed))
    refused(PackedNetwork.load, path)


def test_a_good_packed_network_opens(packed, tmp_path):
    archived(tmp_path / "network.packed", in_header(lambda header: None)(packed))
    PackedNetwork.load(tmp_path / "network.packed")


# --- What lies beside a checkpoint ------------------------------------------------------------

RECORDS = {
    "empty": b"",
    "no JSON": b"data_set: digits",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "in UTF-16": '{"sittings": []}'.encode("utf-16"),
    "sittings that are a number": b'{"sittings": 1}',
    "sittings that are missing": b'{"data_set": "digits"}',
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_refused(name, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(RECORDS[name])
    refused(read_record, path)
    with pytest.raises(ValueError, match=r"run\.json|data set"):
        report.data_set_of_run(tmp_path / "network.keras", (8, 8, 1))


REPORTS = {
    "no arrays": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1])),
    "objects": lambda path: np.savez(path, sha256=np.array([{}], dtype=object)),
    "many zeros": lambda path: np.savez_compressed(path, sha256=np.zeros(2**20, np.uint8)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_damaged_report_is_no_report(name, members, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_ARRAYS", 2**19)
    archived(tmp_path / "network.keras", members)
    (tmp_path / "report.json").write_text('{"sha256": "0"}')
    REPORTS[name](tmp_path / "report.npz")
    assert report.stored_report(tmp_path / "network.keras") is None


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"epochs,layer\n1", b"epochs\nword", "epochs\n1".encode("utf-16")]
)
def test_a_damaged_geometry_is_refused(content, tmp_path):
    path = tmp_path / "geometry.csv"
    path.write_bytes(content)
    refused(read_geometry, path)
