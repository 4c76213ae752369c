"""A run inline in a notebook: whole, harmless, and text where no HTML is shown."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nispa
from nispa.errors import InputError
from nispa.runs.record import RECORD, encode
from tests.records import five_tasks, record
from tests.webpages import ALLOWED, Page

from .test_page import hostile_record


def framed(shown: Any) -> str:
    """The page within the frame."""
    text = shown._repr_html_()
    assert text.count("<iframe") == text.count('sandbox=""') == 1
    found = re.search(r'srcdoc="([^"]*)"></iframe>', text)
    assert found
    return html.unescape(found[1])


def test_matrix_capacity_and_connections(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_bytes(encode(five_tasks()))
    for run in (tmp_path, str(tmp_path / RECORD), five_tasks()):
        page = framed(nispa.show(run))
        for name in ("heat-1-0", "units-1-t", "connections-1-t"):
            assert f'"{name}' in page
        assert "Capacity left after the last task" in page
        assert "<script" not in page
        assert "default-src 'none'" in page


def test_as_text_it_is_the_tables_of_nispa_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*parts: Any) -> None:
        raise AssertionError("rich must not show it by itself")

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", twice)
    text = repr(nispa.show(five_tasks()))
    assert "Accuracy on each task (%)" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_run_without_any_task_and_a_hostile_one() -> None:
    assert "No task was measured yet" in framed(nispa.show(record(accuracy_matrix=(), per_task=())))
    page = Page(framed(nispa.show(hostile_record())).encode())
    assert page.all("script") == page.all("a") == []
    assert {name for name, _ in page.tags} <= ALLOWED
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        nispa.show(tmp_path)
    wrong: Any = 7
    with pytest.raises(InputError, match="run=int must be the folder"):
        nispa.show(wrong)


def test_it_needs_no_torch() -> None:
    code = "import sys, nispa; nispa.show; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
