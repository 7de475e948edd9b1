"""Downloads from a small server on this machine that behaves badly in every way but one."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import download_data, load_data
from data.download_data import download
from data.load_data_test import CIFAR, small_cifar, small_mnist


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        behaviour, _, name = self.path.strip("/").partition("/")
        if behaviour == "together":
            # No answer before both clients have asked for the same file.
            self.server.meeting.wait(60)
        content = self.server.contents.get(name)
        if behaviour == "missing" or content is None:
            self.send_error(404)
        elif behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/good/{name}")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self._send(behaviour, content)

    def _send(self, behaviour, content):
        half = len(content) // 2
        if behaviour == "broken":
            self.wfile.write(content[:half])
            self.close_connection = True
        elif behaviour == "slow":
            self.wfile.write(content[:half])
            self.wfile.flush()
            # Whoever stops first, server or client: it must be the client.
            self.server.outwaited = not self.server.stopped.wait(60)
        elif behaviour == "wrong":
            self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.contents, server.stopped = [], {}, threading.Event()
    server.outwaited, server.meeting = False, threading.Barrier(2)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()


def serve(server, data_set, contents, monkeypatch, *behaviours):
    """Publish `contents` on mirrors that behave like `behaviours`."""
    monkeypatch.setitem(load_data.MD5, data_set, md5_table(contents))
    mirrors = tuple(f"{server.url}/{behaviour}/" for behaviour in behaviours)
    monkeypatch.setitem(load_data.MIRRORS, data_set, mirrors)
    monkeypatch.setattr(download_data, "TIMEOUT", 0.5)
    server.contents = {Path(name).name: content for name, content in contents.items()}


def md5_table(contents):
    return {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}


def tar(contents, **odd):
    """A .tar.gz of `contents`; `odd` changes single members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in odd.get("members", ()):
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def serve_cifar(server, monkeypatch, archive, contents):
    serve(server, "cifar-10", contents, monkeypatch, "good")
    monkeypatch.setitem(
        load_data.ARCHIVES, "cifar-10", md5_table({"cifar-10-python.tar.gz": archive})
    )
    server.contents = {"cifar-10-python.tar.gz": archive}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "behaviours", [["good"], ["redirect"], ["missing", "good"], ["broken", "good"]]
)
def test_download_completes(behaviours, server, tmp_path, monkeypatch):
    contents = small_mnist()
    serve(server, "MNIST", contents, monkeypatch, *behaviours)
    assert download("MNIST", tmp_path / "new") == tmp_path / "new"
    assert files(tmp_path / "new") == sorted(contents)
    assert load_data.load_data("MNIST", tmp_path / "new", valid_size=1).x_test.shape[0] == 2


@pytest.mark.parametrize("behaviour", ["missing", "broken", "wrong", "slow"])
def test_a_failed_download_leaves_nothing_and_tells_the_ways_out(
    behaviour, server, tmp_path, monkeypatch, capsys
):
    serve(server, "MNIST", small_mnist(), monkeypatch, behaviour)
    with pytest.raises(SystemExit) as stop:
        download_data.main(["--data_set", "MNIST", "--data_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert not server.outwaited, "the timeout did not end it"
    error = capsys.readouterr().err.splitlines()[-1]
    for way in ("cannot download", "by hand", "--data_dir", "--data_set digits"):
        assert way in error
    assert files(tmp_path) == []


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setitem(load_data.MIRRORS, "MNIST", ("http://127.0.0.1:9/",))
    with pytest.raises(FileNotFoundError, match="cannot download"):
        download("MNIST", tmp_path)


def test_what_is_complete_is_kept_without_a_request(server, tmp_path, monkeypatch):
    serve(server, "MNIST", small_mnist(), monkeypatch, "good")
    download("MNIST", tmp_path)
    before = len(server.requests)
    times = [path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()]
    download("MNIST", tmp_path)
    assert len(server.requests) == before
    assert [path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()] == times


def test_only_what_is_damaged_is_fetched_again(server, tmp_path, monkeypatch):
    contents = small_mnist()
    serve(server, "MNIST", contents, monkeypatch, "good")
    download("MNIST", tmp_path)
    name = [*contents][2]
    (tmp_path / name).write_bytes(b"damaged")
    server.requests.clear()
    download("MNIST", tmp_path)
    assert server.requests == [f"/good/{Path(name).name}"]
    assert (tmp_path / name).read_bytes() == contents[name]


TWO_AT_ONCE = """
import json, sys
from data import download_data, load_data
load_data.MD5["MNIST"], load_data.MIRRORS["MNIST"] = json.loads(sys.argv[2])
download_data.main(["--data_set", "MNIST", "--data_dir", sys.argv[1]])
"""


def test_two_downloads_at_once(server, tmp_path, monkeypatch):
    contents = small_mnist()
    serve(server, "MNIST", contents, monkeypatch, "together")
    tables = json.dumps([load_data.MD5["MNIST"], load_data.MIRRORS["MNIST"]])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_AT_ONCE, tmp_path, tables],
            cwd=Path(download_data.__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(server.requests) == 2 * len(contents)
    assert files(tmp_path) == sorted(contents)
    load_data.load_data("MNIST", tmp_path, valid_size=1)


def test_the_archive_is_unpacked_and_repairs_a_batch(server, tmp_path, monkeypatch):
    contents, _ = small_cifar()
    serve_cifar(server, monkeypatch, tar(contents), contents)
    download("cifar-10", tmp_path)
    assert files(tmp_path) == sorted([*contents, "cifar-10-python.tar.gz"])
    (tmp_path / CIFAR / "test_batch").write_bytes(b"")
    server.requests.clear()
    download("cifar-10", tmp_path)
    assert (tmp_path / CIFAR / "test_batch").read_bytes() == contents[f"{CIFAR}/test_batch"]
    assert server.requests == []


def hostile_members(outside):
    """Members that `tarfile.extractall` would write to or link to `outside`."""
    up = tarfile.TarInfo("../" * 30 + str(outside / "up").lstrip("/"))
    absolute = tarfile.TarInfo(str(outside / "absolute"))
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    through = tarfile.TarInfo("link/through")
    extra = tarfile.TarInfo(f"{CIFAR}/extra")
    for member in (up, absolute, through, extra):
        member.size = 4
    return [up, absolute, link, through, extra]


def test_an_archive_writes_only_what_it_should(server, tmp_path, monkeypatch):
    contents, _ = small_cifar()
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    archive = tar(contents, members=hostile_members(outside))
    serve_cifar(server, monkeypatch, archive, contents)
    download("cifar-10", folder)
    assert files(tmp_path) == sorted(
        f"data/{name}" for name in [*contents, "cifar-10-python.tar.gz"]
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        members.extractall(tmp_path / "trusting", filter="fully_trusted")
    assert files(outside) == ["absolute", "through", "up"], "the archive was harmless all along"


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_with_the_right_md5(part, server, tmp_path, monkeypatch):
    contents, _ = small_cifar()
    archive = tar(contents)
    serve_cifar(server, monkeypatch, archive[: int(part * len(archive))], contents)
    with pytest.raises(ValueError, match="is not a whole archive"):
        download("cifar-10", tmp_path)
    # What came before the end may be there, but only whole.
    for name in set(files(tmp_path)) - {"cifar-10-python.tar.gz"}:
        assert (tmp_path / name).read_bytes() == contents[name]


def test_a_full_disk_is_not_taken_for_a_bad_mirror(server, tmp_path, monkeypatch):
    serve(server, "MNIST", small_mnist(), monkeypatch, "good", "good")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr("shutil.move", full)
    with pytest.raises(OSError, match="No space left on device"):
        download("MNIST", tmp_path)
    assert len(server.requests) == 1
    assert files(tmp_path) == []


def test_a_file_already_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        download_data.main(["--data_set", "MNIST", "--data_dir", str(tmp_path / "file")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "is not a folder" in error
    assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "other content", "absent"])
def test_a_member_that_is_not_the_published_file_is_refused(kind, server, tmp_path, monkeypatch):
    contents, _ = small_cifar()
    name = f"{CIFAR}/data_batch_1"
    others = {key: value for key, value in contents.items() if key != name}
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = {
        "link": tar(others, members=[link]),
        "other content": tar({**others, name: b"other"}),
        "absent": tar(others),
    }[kind]
    serve_cifar(server, monkeypatch, archive, contents)
    with pytest.raises(ValueError, match="data_batch_1"):
        download("cifar-10", tmp_path)
    assert not (tmp_path / name).exists()


def test_runs_from_any_folder(tmp_path):
    script = Path(download_data.__file__).resolve()
    done = subprocess.run(
        [sys.executable, script, "--data_set", "imagenet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "invalid choice: 'imagenet'" in done.stderr
