"""``nispa play`` in headless Chromium, by what a person does, with mouse and keyboard."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nispa.serve import classroom as classes
from nispa.serve.classroom import Classroom
from tests.extent import optional
from tests.webpage.test_browser import FOUND, Browser, chromium

optional("starlette")
uvicorn = optional("uvicorn")
pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium here")
PATIENCE_S = 120


def wait_for(browser: Browser, code: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not browser.value(code):
        assert time.monotonic() < until, (code, browser.value("status.textContent"))
        time.sleep(0.05)


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """The page of a class with a small network, loaded, with all that happened on the way."""
    from nispa.serve.gate import Door
    from nispa.serve.play_app import application
    from nispa.serve.running import LOCAL, bound

    monkeypatch.setattr(classes, "NISPA", {**classes.NISPA, "min_phases": 2, "max_phases": 4})
    monkeypatch.setattr(classes, "PLAIN", {**classes.PLAIN, "epochs": 8})
    room = Classroom(hidden=(40, 40, 40), batch_size=32)
    app, closing = application(room, Door(LOCAL, None))
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    try:
        with chromium(tmp_path / "profile") as found:
            for part in ("Page", "Runtime", "Log", "Network"):
                found.call(f"{part}.enable")
            resize(found, 1300)
            found.call("Page.navigate", url=url)
            found.wait_for("Page.loadEventFired")
            wait_for(found, "document.querySelectorAll('#tasks button').length >= 4")
            yield found
            assert found.params("Runtime.exceptionThrown") == []
            assert found.params("Log.entryAdded") == []  # such as what the policy refused
            asked = {each["request"]["url"] for each in found.params("Network.requestWillBeSent")}
            assert all(each.startswith(url) for each in asked)
    finally:
        closing.set()
        server.should_exit = True
        thread.join()
        listening.close()


def resize(browser: Browser, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip


def box(browser: Browser, selector: str) -> list[float]:
    element = f"document.querySelector({json.dumps(selector)})"
    browser.value(f"{element}.scrollIntoView({{block: 'center'}})")
    found: list[float] = browser.value(
        f"(() => {{const b = {element}.getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]})()"
    )
    return found


def mouse(browser: Browser, kind: str, x: float, y: float) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                 buttons=1, clickCount=1)  # fmt: skip


def click(browser: Browser, selector: str) -> None:
    left, top, width, height = box(browser, selector)
    for kind in ("mousePressed", "mouseReleased"):
        mouse(browser, kind, left + width / 2, top + height / 2)


def draw(browser: Browser, pad: str, points: list[tuple[float, float]]) -> None:
    """A stroke through points, each in [0, 1]."""
    left, top, width, height = box(browser, pad)
    places = [(left + x * width, top + y * height) for x, y in points]
    mouse(browser, "mousePressed", *places[0])
    for place in places[1:]:
        mouse(browser, "mouseMoved", *place)
    mouse(browser, "mouseReleased", *places[-1])


def press(browser: Browser, key: str, code: int, modifiers: int = 0) -> None:
    text = {"text": "\r"} if key == "Enter" else {}
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key,
                 windowsVirtualKeyCode=code, modifiers=modifiers, **text)  # fmt: skip
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key,
                 windowsVirtualKeyCode=code)  # fmt: skip


LEARNED = "document.querySelectorAll('#accuracy td[data-learner]').length == 2 * {} && !{}"
BUSY = "/being learned/.test(document.querySelector('#tasks').textContent)"
BAR = [(0.5, 0.15), (0.5, 0.85)]
RING = [(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3)]


def shares(browser: Browser, learner: str) -> list[float]:
    code = f"[...document.querySelectorAll('td[data-learner={learner}]')].map(c => c.dataset.share)"
    return [float(share) for share in browser.value(code)]


def answers(browser: Browser) -> dict[str, str]:
    wait_for(browser, "document.querySelectorAll('#answers strong').length == 2")
    found: dict[str, str] = browser.value(
        "Object.fromEntries([...document.querySelectorAll('#answers > div')]"
        ".map(d => [d.dataset.learner, d.querySelector('strong').textContent]))"
    )
    return found


def test_draw_teach_two_tasks_and_the_first_still_answers(browser: Browser) -> None:
    click(browser, "#own summary")
    for kind, points in ((1, BAR), (2, RING)):
        for shift in (0.0, 0.05):
            draw(browser, "#own-pad", [(x + shift, y) for x, y in points])
            click(browser, f".kind:nth-child({kind}) button")
    click(browser, "#own-teach")
    wait_for(browser, LEARNED.format(1, BUSY))
    draw(browser, "#pad", BAR)
    assert answers(browser) == {"nispa": "star", "plain": "star"}
    before = shares(browser, "nispa")
    click(browser, "[data-key=digits-0-to-4]")
    wait_for(browser, LEARNED.format(2, BUSY))
    assert shares(browser, "nispa")[:1] == before
    assert browser.value("document.getElementById('task').value") == "0"
    for points, label in ((BAR, "star"), (RING, "moon")):
        click(browser, "#clear")
        draw(browser, "#pad", points)
        assert answers(browser)["nispa"] == label
    # Units of both tasks are stable, and what is spoken says so.
    states = "new Set(nispaPlay.network.states.fc2)"
    assert browser.value(f"{states}.has(2) && {states}.has(3) && !{states}.has(1)")
    assert "NISPA forgot nothing" in browser.value("spoken.textContent")
    rows = browser.value("[...document.querySelectorAll('#counts tbody tr')].map(r => r.innerText)")
    assert [row.split("\t")[0] for row in rows] == ["layer 1", "layer 2", "layer 3", "answers"]
    # It is drawn smoothly: frames of 2.2 seconds after a change, on however slow a machine.
    assert browser.value("nispaPlay.network.frames") > 10


def test_with_the_keyboard_alone(browser: Browser) -> None:
    browser.value("document.querySelector('[data-key=digits-0-to-4]').focus()")
    press(browser, "Enter", 13)
    wait_for(browser, LEARNED.format(1, BUSY))
    browser.value("document.getElementById('example').focus()")
    press(browser, "Enter", 13)
    assert len(answers(browser)) == 2
    assert browser.value("truth.textContent").startswith("It is ")
    browser.value("document.getElementById('pad').focus()")
    press(browser, "Delete", 46)
    for _ in range(5):
        press(browser, "ArrowDown", 40, modifiers=8)
    said = browser.value("[...document.querySelectorAll('[role=status]')].map(e => e.textContent)")
    assert any(text == "row 14, column 9, drawn" for text in said)
    assert len(answers(browser)) == 2


def test_the_tour_leads_and_gives_the_focus_back(browser: Browser) -> None:
    browser.value("document.getElementById('tour-begin').focus()")
    press(browser, "Enter", 13)
    assert browser.value("document.activeElement.id") == "tour-title"
    titles = []
    for _ in range(6):
        titles.append(browser.value("document.getElementById('tour-title').textContent"))
        click(browser, "#tour-next")
    assert len(set(titles)) == 6
    assert browser.value("document.getElementById('tour').open") is False
    assert browser.value("document.activeElement.id") == "tour-begin"
    press(browser, "Enter", 13)
    press(browser, "Escape", 27)
    assert browser.value("document.getElementById('tour').open") is False


@pytest.mark.parametrize("width", [320, 768, 1300])
def test_nothing_scrolls_sideways_and_all_has_a_name(browser: Browser, width: int) -> None:
    resize(browser, width)
    browser.value("document.getElementById('own').open = true")
    wait_for(browser, f"document.documentElement.scrollWidth <= {width}")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "combobox", "img", "application")
    nameless = [
        node for node in tree
        if node.get("role", {}).get("value") in roles and not node.get("name", {}).get("value")
    ]  # fmt: skip
    assert nameless == []


@pytest.mark.ci
def test_a_page_that_comes_later_sees_what_was_learned(browser: Browser) -> None:
    click(browser, "[data-key=digits-0-to-4]")
    wait_for(browser, LEARNED.format(1, BUSY))
    before: Any = shares(browser, "nispa")
    browser.call("Page.reload")
    wait_for(browser, "typeof nispaPlay !== 'undefined' && " + LEARNED.format(1, BUSY))
    assert shares(browser, "nispa") == before
    click(browser, "#restart")
    wait_for(browser, LEARNED.format(0, BUSY))
