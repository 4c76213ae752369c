"""``nispa serve``: what it refuses, how it ends, and that nothing else pays for it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import nispa
from nispa.errors import ConfigError
from nispa.serve.running import door_for, is_loopback
from tests.cli_calls import call, spawn
from tests.extent import optional

from .small import examples, saved

optional("starlette")
optional("uvicorn")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path / "learner.safetensors")


def test_other_machines_may_not_ask_without_a_token(
    file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NISPA_TOKEN", raising=False)
    ended = call(capsys, "serve", file, "--host", "0.0.0.0")
    assert ended.code == 2
    assert "--token-file" in ended.err
    monkeypatch.setenv("NISPA_TOKEN", "short")
    assert "16 ASCII characters" in call(capsys, "serve", file, "--host", "0.0.0.0").err
    (file.parent / "token").write_text("with blanks in it, so no token\n")
    assert "no blanks" in call(capsys, "serve", file, "--token-file", file.parent / "token").err


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")),
    ],
)
def test_addresses_of_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) == local
    if not local:
        with pytest.raises(ConfigError):
            door_for(host, None)
    assert door_for(host, "x" * 16).token == "x" * 16


def test_a_port_that_is_taken_and_a_file_that_is_not_there(file: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = call(capsys, "serve", file, "--port", str(taken.getsockname()[1]))
        assert ended.code == 2
        assert "choose another --port" in ended.err
    ended = call(capsys, "serve", file.parent / "nothing", "--port", "0")
    assert (ended.code, "nothing" in ended.err) == (2, True)
    assert [each.name for each in file.parent.iterdir()] == [file.name]  # no lock is left


def test_without_the_packages_it_says_what_to_install(file: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv[0] = 'nispa'\n"
        "from nispa.cli import main; main()"
    )
    for args in (["serve", str(file)], ["play"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert 'pip install "nispa[serve]"' in done.stderr


def test_help_imports_no_server() -> None:
    code = (
        "import sys\nfrom nispa.cli import cli\n"
        "for args in (['--help'], ['serve', '--help'], ['play', '--help']):\n"
        "    try: cli.main(args)\n"
        "    except SystemExit: pass\n"
        "bad = {'starlette', 'uvicorn', 'anyio', 'torch', 'nispa.serve'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.ci
def test_it_answers_and_ends_as_a_whole_while_a_task_is_learned(file: Path) -> None:
    content = file.read_bytes()
    with spawn("serve", file.name, "--port", "0", cwd=file.parent) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.match(r"Serving (http://127\.0\.0\.1:\d+) \(1 task learned\)", line)
        assert found, line
        images, labels = examples((2, 3), each=200)
        task = {"name": "second", "images": images.tolist(), "labels": labels}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(
            f"{found[1]}/tasks", json.dumps(task).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request) as reply:
            assert reply.status == 202
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
    assert server.returncode == 143
    assert out == ""
    assert re.fullmatch(
        r"nispa: terminated: learner.safetensors is whole and holds 1 task; "
        r"tasks not yet learned and dropped: 1\n",
        err,
    ), err
    assert file.read_bytes() == content
    assert len(nispa.Learner.load(file).tasks) == 1
    assert [each.name for each in file.parent.iterdir() if each.is_file()] == [file.name]
