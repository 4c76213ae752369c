"""The page in headless Chromium: no error, no request, values under the pointer, chosen runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nispa.webpage import Run, page
from tests.records import five_tasks, priced

FOUND = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(FOUND is None or os.name == "nt", reason="no Chromium here")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
]


class Browser:
    """Chromium's DevTools protocol over two pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.number = 0
        self.session = ""
        self.rest = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], 60)  # rather fail than hang
            assert ready, "Chromium does not answer"
            data = os.read(self.read, 65_536)
            assert data, "Chromium has ended"
            self.rest += data
        line, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.receive())

    def value(self, code: str) -> Any:
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def params(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A Chromium of its own, with an empty profile."""
    to_read, write = os.pipe()
    read, to_write = os.pipe()

    def place_pipes() -> None:  # it reads from 3 and writes to 4
        import fcntl  # not on Windows

        saved = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (to_read, to_write)]
        os.dup2(saved[0], 3)
        os.dup2(saved[1], 4)

    command = [str(FOUND), *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        command,
        preexec_fn=place_pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        browser = Browser(write, read)
        pages = browser.call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in pages if info["type"] == "page")
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        browser.session = attached["sessionId"]
        yield browser
    finally:
        process.kill()
        process.wait()
        os.close(write)
        os.close(read)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """The page of three runs, loaded, with everything that happened on the way."""
    file = tmp_path / "report.html"
    runs = [Run(f"run {k}", priced(five_tasks(seed=k))) for k in range(2)]
    runs.append(Run("other", priced(five_tasks(seed=7, method="other"))))
    file.write_bytes(page(runs))
    with chromium(tmp_path / "profile") as found:
        for part in ("Page", "Runtime", "Log", "Network"):
            found.call(f"{part}.enable")
        found.call("Emulation.setDeviceMetricsOverride", width=1000, height=800,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        found.call("Page.navigate", url=file.as_uri())
        found.wait_for("Page.loadEventFired")
        yield found
        assert found.params("Runtime.exceptionThrown") == []
        assert found.params("Log.entryAdded") == []  # such as what the policy refused
        urls = {event["request"]["url"] for event in found.params("Network.requestWillBeSent")}
        assert urls == {file.as_uri()}


def centre(browser: Browser, name: str, share: float) -> tuple[float, float]:
    """A place within a picture: in the middle of its height, at a share of its width."""
    picture = f"document.querySelector('svg[aria-labelledby^={name}]')"
    browser.value(f"{picture}.closest('details')?.setAttribute('open', '')")
    browser.value(f"{picture}.scrollIntoView({{block: 'center'}})")
    box = browser.value(f"(() => {{const b = {picture}.getBoundingClientRect();"
                        "return [b.left, b.top, b.width, b.height]})()")  # fmt: skip
    return box[0] + share * box[2], box[1] + box[3] / 2


TIP = "document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent"


def test_values_under_the_pointer(browser: Browser) -> None:
    assert browser.value(TIP) == ""
    x, y = centre(browser, "units-1-t", 0.15)  # the first of five tasks
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.value(TIP).splitlines() == [
        "after task: 1 emnist-0",
        "hidden1: 205 of 400",
        "hidden2: 240 of 400",
        "hidden3: 172 of 400",
    ]
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser.value(TIP) == ""


def test_values_with_the_keyboard(browser: Browser) -> None:
    centre(browser, "units-1-t", 0)
    browser.value("document.querySelector('svg[aria-labelledby^=units-1-t]').focus()")
    for key in ("ArrowRight", "ArrowRight"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert "after task: 3 emnist-2" in browser.value(TIP)
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert browser.value(TIP) == ""


def test_choosing_runs(browser: Browser) -> None:
    def shown() -> list[str]:
        found: list[str] = browser.value(
            "[...document.querySelectorAll('details[data-run]:not([hidden])')].map(d => d.id)"
        )
        return found

    assert shown() == ["run-1", "run-2", "run-3"]
    browser.value("document.querySelector('input[value=\"3\"]').click()")
    assert shown() == ["run-1", "run-2"]
    rows = "document.querySelectorAll('#methods-1 tbody tr:not([hidden])').length"
    assert browser.value(rows) == 1
    browser.value("document.querySelector('button[data-all=\"0\"]').click()")
    assert shown() == []
    browser.value("document.querySelector('button[data-all=\"1\"]').click()")
    assert shown() == ["run-1", "run-2", "run-3"]
    assert browser.value(rows) == 2


AXES = """[...document.querySelectorAll('.axes > svg')]
    .filter(svg => svg.getBoundingClientRect().height > 0).map(svg => svg.textContent)"""


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                     windowsVirtualKeyCode={"ArrowRight": 39}[key])  # fmt: skip


@pytest.mark.parametrize("script", [True, False])
def test_one_picture_against_the_chosen_cost(browser: Browser, script: bool) -> None:
    """With the keyboard, and without a script: what is chosen is for the style alone."""
    if not script:
        reload_without_scripts(browser)
    (shown,) = browser.value(AXES)
    assert shown.startswith("Accuracy against training operations")
    browser.value("document.querySelector('.axes input').focus()")
    press(browser, "ArrowRight")
    (shown,) = browser.value(AXES)
    assert shown.startswith("Accuracy against inference operations")
    browser.value("[...document.querySelectorAll('.axes label')].at(-1).click()")
    (shown,) = browser.value(AXES)
    assert shown.startswith("Accuracy against peak resident memory")


def test_a_table_that_goes_on_shows_it_and_keeps_its_first_column(browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800,
                 deviceScaleFactor=1, mobile=True)  # fmt: skip
    browser.value("window.box = document.getElementById('costs-1').parentElement")
    assert browser.value("box.scrollWidth - box.clientWidth") > 50
    assert "linear-gradient" in browser.value("getComputedStyle(box).maskImage")
    # At the end of the way nothing of the table lies where it fades.
    browser.value("box.scrollLeft = 10000")
    edge = browser.value(
        "box.getBoundingClientRect().right - box.firstChild.getBoundingClientRect().right"
    )
    fade = browser.value("parseFloat(getComputedStyle(box).paddingRight)")
    assert edge > fade - 1 > 20  # but for the rounding of what is scrolled
    left = "box.{}getBoundingClientRect().left"
    first = browser.value(left.format("querySelector('tbody th')."))
    assert first == browser.value(left.format(""))


def test_a_link_opens_its_run(browser: Browser) -> None:
    assert browser.value("document.getElementById('run-2').open") is False
    browser.value("document.querySelector('a[href=\"#run-2\"]').click()")
    browser.call("Runtime.evaluate", expression="new Promise(r => setTimeout(r, 50))",
                 awaitPromise=True)  # fmt: skip
    assert browser.value("document.getElementById('run-2').open") is True


@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_does_not_scroll_sideways(browser: Browser, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=700,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
    browser.value("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.value("document.documentElement.scrollWidth") <= width


def reload_without_scripts(browser: Browser) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.events.clear()
    url = browser.call("Page.getNavigationHistory")["entries"][-1]["url"]
    browser.call("Page.navigate", url=url)
    browser.wait_for("Page.loadEventFired")
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_is_complete_without_scripts(browser: Browser) -> None:
    reload_without_scripts(browser)
    # Boxes and buttons that would do nothing are not shown; the pictures are.
    hidden = "getComputedStyle(document.querySelector('{}')).display"
    assert browser.value(hidden.format("p.pick")) == "none"
    assert browser.value(hidden.format("#runs-table input")) in ("none", "inline-block")
    assert browser.value("document.querySelector('#runs-table input').offsetParent === null")
    assert browser.value("document.querySelectorAll('svg[role=img] path').length") > 20
