"""What is looked for in the built site is found, and the README names how it is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from .site import main, problems

ROOT = Path(__file__).parents[1]
HEAD = (
    '<html lang="en"><head><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<link rel="stylesheet" href="style.css"></head>'
)
GOOD = {
    "style.css": "a { background: url(dot.png) }",
    "index.html": HEAD + '<h1 id="top">A</h1><h2>B</h2><h3>C</h3><h2>D</h2>'
    '<a href="a/b.html#here">x</a><a href="#top">y</a><a href="https://arxiv.org">z</a>',
    "a/b.html": HEAD.replace("style", "../style")
    + '<h1>A</h1><p id="here"><a href="../index.html#top">x</a><img src="../d.png" alt="d">',
    "d.png": "",
}


def test_a_good_site_has_no_problem() -> None:
    assert list(problems(GOOD)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("index.html", "a/b.html#here", "a/c.html", "broken link a/c.html"),
        ("index.html", "#here", "#there", "link to a missing place a/b.html#there"),
        ("index.html", "#top", "#tip", "link to a missing place #tip"),
        ("a/b.html", 'alt="d"', 'alt=" "', "picture without a text: ../d.png"),
        ("a/b.html", "../d.png", "../e.png", "broken link ../e.png"),
        ("a/b.html", "../d.png", "//cdn.org/d.png", "loads //cdn.org/d.png from elsewhere"),
        ("index.html", "style.css", "https://x.org/s.css", "loads https://x.org/s.css from elsewh"),
        ("index.html", "<h2>B</h2>", "", "an h3 follows an h1"),
        ("index.html", "<h2>D</h2>", "<h1>D</h1>", "headings begin [1, 2, 3]"),
        ("index.html", "width=device-width", "width=900", "no viewport"),
        ("index.html", ' lang="en"', "", "no language"),
        ("style.css", "dot.png", "https://x.org/dot.png", "loads something from elsewhere"),
    ],
)
def test_what_is_wrong_is_found(name: str, old: str, new: str, problem: str) -> None:
    assert old in GOOD[name]
    found = list(problems({**GOOD, name: GOOD[name].replace(old, new)}))
    assert len(found) == 1
    assert found[0].startswith(f"{name}: {problem}")


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main(str(tmp_path)) == 0
    assert "2 pages, 0 problems" in capsys.readouterr().out
    (tmp_path / "a" / "b.html").unlink()
    assert main(str(tmp_path)) == 1
    assert "index.html: broken link a/b.html#here" in capsys.readouterr().out
    (tmp_path / "index.html").unlink()
    assert main(str(tmp_path)) == 1


def test_ci_builds_the_site_as_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "readme_command docs" in ci
    assert "tests.site" in ci
    readme = (ROOT / "README.md").read_text()
    block = readme.partition("<!-- command: docs -->\n```sh\n")[2].partition("```")[0]
    assert "--fail-on-warning" in block
