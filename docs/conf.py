"""The documentation as a site: Sphinx reads the same Markdown that a code host shows.

The folder of sources is the repository, so a link between pages has one spelling that holds in both
places. What only the site has is added here: its contents, and the text of docstrings where a page
says ``<!-- api: MODULE -->``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import nispa

ROOT = Path(__file__).parents[1]


def _all(folder: str) -> list[str]:
    """The pages in a folder under ``docs/``, by name."""
    return [f"docs/{folder}/{page.stem}" for page in sorted((ROOT / "docs" / folder).glob("*.md"))]


def _methods() -> list[str]:
    """NISPA's pages, then those of the other methods by name."""
    first = [f"docs/methods/{name}" for name in ("nispa", "nispa-replay", "nispa-context")]
    return first + [page for page in _all("methods") if page not in first]


CONTENTS = {
    "Start": ["docs/install", "docs/tutorial", "docs/README"],
    "How to": [
        "docs/howto/own-images",
        "docs/howto/tables",
        "docs/howto/python",
        "docs/howto/own-network",
        "docs/howto/ship",
        "docs/howto/serve",
        "docs/howto/play",
        "docs/howto/own-method",
        "docs/howto/class-incremental",
        "docs/howto/many-runs",
        "docs/howto/compare-methods",
        "docs/howto/resume",
        "docs/howto/speed",
    ],
    "Reference": [
        "docs/cli",
        "docs/data",
        "docs/settings",
        "docs/defaults",
        "docs/record",
        "docs/metrics",
        "docs/cost",
        "docs/compare",
        "docs/report",
        "docs/runs",
        "docs/sweeps",
        "docs/trackers",
    ],
    "Python": [
        "docs/api/learner",
        "docs/api/deploy",
        "docs/api/methods",
        "docs/api/training",
        "docs/api/network",
        "docs/api/graph",
        "docs/api/mechanism",
        "docs/api/memory",
        "docs/api/data",
        "docs/api/records",
        "docs/api/sweeps",
        "docs/api/errors",
    ],
    "Methods": _methods(),
    "Findings": ["docs/results", "docs/claims", "docs/performance", "docs/log"],
    "Project": ["CONTRIBUTING", "CODE_OF_CONDUCT", "SECURITY", "ARCHITECTURE", "CHANGELOG"],
    "Decisions": _all("decisions"),
}
"""Every page but the first by its heading in the sidebar; one that is left out is a warning."""

project = "nispa"
author = "the nispa authors"
release = version = nispa.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [
    ".*", "build", "dist", "runs", "shared", "site", "src", "tests", "benchmarks", "examples"
]  # fmt: skip
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
show_warning_types = True

myst_heading_anchors = 4

autodoc_member_order = "bysource"
# A name is described where it is defined, also where another module offers it in its __all__.
autodoc_default_options = {
    "members": True,
    "no-value": True,
    "ignore-module-all": True,
    # scikit-learn adds these, with texts that refer to its own pages.
    "exclude-members": ",".join(
        f"set_{name}_request"
        for name in ("fit", "partial_fit", "predict", "predict_proba", "score")
    ),
}
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name for name in ("ArrayLike", "Event", "Learning", "Loss", "RunEvent", "Rows", "Step")
}  # what they stand for would fill a screen
nitpicky = True  # a name that a docstring refers to must be there ...
# ... but for types, most of which are not ours. One with a blank is a text: Napoleon takes what
# stands before a colon in the first line of an attribute's docstring for its type.
nitpick_ignore_regex = [("py:class", r"\S+"), ("py:obj", r"typing\.Literal\[.*")]
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_title = f"nispa {release}"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


def _contents() -> str:
    """The contents as hidden lists: the sidebar and the order of reading."""
    return "\n".join(
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```"
        for caption, pages in CONTENTS.items()
    )


def _link_names(table: re.Match[str]) -> str:
    """A table of a module's names, each of them a link to its text."""
    module = table[1]
    return re.sub(r"(?m)^\| `(\w+)` ", rf"| {{py:obj}}`\1 <{module}.\1>` ", table[0])


def add_what_only_the_site_has(app: Any, page: str, source: list[str]) -> None:
    """Adds the contents to the first page, and docstrings where a page asks for them."""
    text = source[0]
    if page == root_doc:
        text += _contents()
    text = re.sub(r"(?m)^<!-- table: api ([\w.]+) -->\n(?:\|.*\n)*", _link_names, text)
    directive = r"```{eval-rst}\n.. automodule:: \1\n```"
    source[0] = re.sub(r"(?m)^<!-- api: ([\w.]+) -->$", directive, text)


def name_types(
    app: Any,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    signature: str | None,
    gives: str | None,
) -> tuple[str | None, str | None]:
    """A signature with the plain names of ``autodoc_type_aliases``."""

    def plain(text: str | None) -> str | None:
        return text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return plain(signature), plain(gives)


def add_index(app: Any, failed: Exception | None) -> None:
    """A web server and a person look for ``index.html``: it is the first page."""
    out = Path(app.outdir)
    if failed is None and (out / f"{root_doc}.html").exists():
        shutil.copy(out / f"{root_doc}.html", out / "index.html")


def setup(app: Any) -> None:
    """Registers what this file does."""
    app.connect("source-read", add_what_only_the_site_has)
    app.connect("autodoc-process-signature", name_types)
    app.connect("build-finished", add_index)
