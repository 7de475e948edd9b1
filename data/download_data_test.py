"""Downloads from a small server on this machine that behaves badly in every way but one."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import time
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
            self.server.stopped.wait(10)
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
    start = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        download_data.main(["--data_set", "MNIST", "--data_dir", str(tmp_path)])
    assert stop.value.code == 2
    assert time.monotonic() - start < 9, "the timeout did not end it"
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


def test_two_downloads_at_once(server, tmp_path, monkeypatch):
    contents = small_mnist()
    serve(server, "MNIST", contents, monkeypatch, "good")
    errors = []

    def one():
        try:
            download("MNIST", tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
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


def hostile_members():
    outside = tarfile.TarInfo("../outside")
    absolute = tarfile.TarInfo("/tmp/outside-of-the-archive")
    inside = tarfile.TarInfo(f"{CIFAR}/extra")
    link = tarfile.TarInfo(f"{CIFAR}/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for member in (outside, absolute, inside):
        member.size = 4
    return [outside, absolute, inside, link]


def test_an_archive_writes_only_what_it_should(server, tmp_path, monkeypatch):
    contents, _ = small_cifar()
    serve_cifar(server, monkeypatch, tar(contents, members=hostile_members()), contents)
    folder = tmp_path / "deep" / "data"
    download("cifar-10", folder)
    assert files(tmp_path) == sorted(
        f"deep/data/{name}" for name in [*contents, "cifar-10-python.tar.gz"]
    )


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
