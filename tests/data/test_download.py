"""Downloads, against a server on this machine that cuts connections and lies on request."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nispa.data.catalog import CATALOG, Remote
from nispa.data.download import cache_folder, fetch
from nispa.data.sources import load
from nispa.errors import DataError
from tests.data.makers import write_mnist

CONTENT = bytes(range(256)) * 4096  # 1 MiB
TIMEOUT_S = (2.0, 2.0)


@dataclass
class Server:
    """What the server holds, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    ignore_range: bool = False
    wrong_range: bool = False
    hang: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    state = Server()
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append((self.path, asked))
            if state.hang:
                release.wait(10)
                return
            name = self.path.rsplit("/", 1)[-1]
            if name not in state.files:
                self.send_error(404)
                return
            content = state.files[name]
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if asked and not state.ignore_range:
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                shown = start + 1 if state.wrong_range else start
                end = len(content)
                self.send_header("Content-Range", f"bytes {shown}-{end - 1}/{end}")
                content = content[start:]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: state.cut_after])

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    state.files["x.bin"] = CONTENT
    yield state
    release.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def remote(*urls: str, content: bytes = CONTENT, most: int = 1 << 21) -> Remote:
    return Remote("x.bin", hashlib.md5(content).hexdigest(), urls, most)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_whole_download_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    fetch(
        [remote(f"{server.url}/x.bin")],
        tmp_path,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["x.bin"]
    assert seen[-1] == ("x.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert len(server.asked) == 1  # what is there is not asked for again


def test_cut_connection_keeps_the_part_and_goes_on_from_there(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after = 300_000
    with pytest.raises(DataError, match=r"cut.*300000 bytes are kept, run again to go on") as seen:
        fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert "\n" not in str(seen.value)
    assert names(tmp_path) == ["x.bin.part"]
    assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[:300_000]
    server.cut_after = None
    fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert server.asked[-1] == ("/x.bin", "bytes=300000-")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["x.bin"]


def test_server_that_ignores_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(b"something old")
    server.ignore_range = True
    fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert server.asked == [("/x.bin", "bytes=13-")]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_another_range_than_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:1000])
    server.wrong_range = True
    with pytest.raises(DataError, match="another part than was asked for"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert names(tmp_path) == []


def test_part_longer_than_the_file_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(CONTENT + b"more")
    fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    wanted = remote(f"{server.url}/x.bin", content=b"something else")
    with pytest.raises(DataError, match="wrong checksum, the file was removed"):
        fetch([wanted], tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_part_that_is_a_link_or_a_pipe_is_not_written_to(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "x.bin.part"
    (tmp_path / "mine").write_bytes(b"precious")
    part.symlink_to("mine")
    with pytest.raises(DataError, match="is a link, or no regular file"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"precious"
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(DataError, match="is a link, or no regular file"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path)


def test_damaged_part_is_noticed_and_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.bin.part").write_bytes(b"wrong" * 100)
    with pytest.raises(DataError, match="wrong checksum"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path)
    fetch([remote(f"{server.url}/x.bin")], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_next_mirror_is_tried(server: Server, tmp_path: Path) -> None:
    fetch([remote(f"{server.url}/gone/y.bin", f"{server.url}/x.bin")], tmp_path)
    assert [path for path, _ in server.asked] == ["/gone/y.bin", "/x.bin"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_too_large_a_file_is_stopped(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1048576 bytes are more than the 1000 expected"):
        fetch([remote(f"{server.url}/x.bin", most=1000)], tmp_path)
    assert names(tmp_path) == []


def test_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    server.hang = True
    with pytest.raises(DataError, match="timed out"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path, timeout_s=(0.2, 0.2))


def test_no_server_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/x.bin"
    with pytest.raises(DataError, match=r"refused.*place the files in a folder.*folder=DIR"):
        fetch([remote(url)], tmp_path, timeout_s=TIMEOUT_S)


def test_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        fetch([remote(f"{server.url}/x.bin")], tmp_path / "file" / "cache")


def test_a_named_data_set_is_downloaded_once_and_then_cached(
    server: Server, tmp_path: Path, private_cache: Path
) -> None:
    made = write_mnist(tmp_path / "made")
    remotes = []
    for file in CATALOG["mnist"].remotes:
        content = (made / file.file).read_bytes()
        server.files[file.file] = content
        md5 = hashlib.md5(content).hexdigest()
        remotes.append(Remote(file.file, md5, (f"{server.url}/{file.file}",), 1 << 20))
    with pytest.raises(DataError, match=r"mnist: no data folder was given; place train-images"):
        load("mnist", download=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    data = load("mnist", folder=empty, remotes={"mnist": remotes})
    assert len(data.train_labels) == 20
    assert names(private_cache / "mnist") == sorted(file.file for file in remotes)
    asked = len(server.asked)
    again = load("mnist", folder=empty, download=False)
    assert again.identity == data.identity
    assert len(server.asked) == asked == 4


def test_failed_download_names_the_data_set_and_the_folder(server: Server, tmp_path: Path) -> None:
    gone = [remote(f"{server.url}/gone")]
    with pytest.raises(DataError, match=r"mnist: not found in .*, and x\.bin could not .* 404"):
        load("mnist", folder=tmp_path, remotes={"mnist": gone})


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, private_cache: Path
) -> None:
    assert cache_folder() == private_cache
    monkeypatch.delenv("NISPA_CACHE")
    assert cache_folder().name == "nispa"
    assert not private_cache.exists()
