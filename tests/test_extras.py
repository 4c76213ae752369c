"""The light installation: what works with what nispa must have alone, and what says what to get."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import light
from tests.light import PROJECT, ROOT, with_own

SOURCE = ROOT / "src" / "nispa"
MODULE_OF = {"pillow": "PIL", "scikit-learn": "sklearn", "typing-extensions": "typing_extensions"}
SAYS_ITSELF = {"IPython", "mlflow", "wandb", "pillow_heif"}
"""Looked for before they are imported, or reported as missing trackers."""

NOT_IN_ALL = {"all", "ray", "slurm", "tensorboard", "wandb", "mlflow", "docs", "test", "dev"}


def modules_of(lines: list[str]) -> set[str]:
    names = (re.split(r"[^\w.-]", line)[0] for line in lines)
    return {MODULE_OF.get(name, name.replace("-", "_")) for name in names}


def foreign(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The top packages that a statement imports, but nispa and the standard library."""
    named = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module]
    tops = {str(name).partition(".")[0] for name in named}
    return {top for top in tops if top != "nispa" and top not in sys.stdlib_module_names}


def unguarded(tree: ast.AST, extra: str | None = None) -> list[tuple[set[str], str | None]]:
    """All imports of other packages that run, each with the extra of the ``needs`` around it."""
    found: list[tuple[set[str], str | None]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        inner = extra
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs":
                assert isinstance(call.args[0], ast.Constant)
                inner = str(call.args[0].value)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and (tops := foreign(node)):
            found.append((tops, inner))
        found += unguarded(node, inner)
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_each_import_is_of_what_is_there_or_says_what_to_install(path: Path) -> None:
    always = modules_of(PROJECT["dependencies"]) | SAYS_ITSELF
    for tops, extra in unguarded(ast.parse(path.read_text())):
        brought = modules_of(with_own(extra)) if extra else set()
        brought |= {"urllib3"} if "requests" in brought else set()
        assert tops <= always | brought, f"{tops} are not among what extra {extra} brings"


def test_one_extra_has_all_but_clusters_and_trackers() -> None:
    everything = set(with_own("all"))
    for extra in set(PROJECT["optional-dependencies"]) - NOT_IN_ALL:
        assert set(with_own(extra)) <= everything, extra


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages without those of any extra."""
    folder = tmp_path_factory.mktemp("light")
    light.link(folder, light.needed())
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with arrays of four classes, an image and a table."""
    folder = tmp_path_factory.mktemp("there")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    images = rng.integers(0, 60, (120, 8, 8), dtype=np.uint8)
    images[np.arange(120), labels] += 150  # a bright row
    np.savez(folder / "rows.npz", x_train=images, y_train=labels)
    (folder / "table.csv").write_text("a,label\n1,x\n2,y\n")
    (folder / "photos" / "a").mkdir(parents=True)
    (folder / "photos" / "a" / "1.png").write_bytes(b"no image")
    return folder


LEARNER = """
import numpy as np, torch, nispa
stored = np.load("rows.npz")
images, labels = stored["x_train"], stored["y_train"]
learner = nispa.Learner(input_shape=(1, 8, 8), classes=4, max_phases=3, epochs_per_phase=1)
for pair in ((0, 1), (2, 3)):
    learner.learn(images[np.isin(labels, pair)], labels[np.isin(labels, pair)])
assert learner.accuracy(images[labels < 2], labels[labels < 2], task=0) > 0.9
learner.save("learner.safetensors")
again = nispa.Learner.load("learner.safetensors")
assert (again.predict(images, task=1) == learner.predict(images, task=1)).all()
again.forget(0)
learner.export("network.pt2")
hidden = torch.nn.Linear(64, 32)
plain = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), torch.nn.Linear(32, 4))
own = nispa.Learner(model=plain, input_shape=(1, 8, 8), classes=4, max_phases=3)
print(own)
try:
    import nispa.sklearn
except ImportError as error:
    print(error)
"""


def test_a_learner_learns_predicts_and_saves(packages: Path, there: Path) -> None:
    ended = light.run(packages, LEARNER, at=there)
    assert ended.returncode == 0, ended.stderr
    assert 'pip install "nispa[sklearn]"' in ended.stdout.splitlines()[-1]
    assert (there / "network.pt2").exists()


@pytest.mark.ci
def test_the_command_line_learns_and_reads_its_runs(packages: Path, there: Path) -> None:
    run = "run split --dataset rows.npz --classes-per-task 2 --set max_phases=3 --out RUN"
    lines = [f"{run} --set epochs_per_phase=1"]
    lines += ["runs RUN", "report RUN --out page.html", "doctor", "list settings", "--help"]
    for line, ended in zip(lines, light.commands(packages, *lines, at=there), strict=True):
        assert ended.code == 0, (line, ended)
        assert ended.err == "" or line == lines[0], ended
    assert (there / "RUN" / "network.safetensors").exists()
    assert not (there / "RUN" / "run.png").exists()


MISSING = {
    "run split-digits": "sklearn",
    "run split --dataset rows.npz --classes-per-task 2 --method gem": "sklearn",
    "run split --dataset table.csv": "data",
    "run split --dataset photos": "data",
    "run split --dataset rows.npz --resize 4": "data",
    "run split-mnist": "data",
    "sweep split-digits": "sweep",
    "search split-digits --range learning_rate=0.1..0.2": "search",
}


@pytest.mark.ci
def test_a_command_says_in_a_line_what_to_install(
    packages: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NISPA_CACHE")
    monkeypatch.delenv("NISPA_DATA", raising=False)
    found = light.commands(packages, *MISSING, at=there)
    for (words, extra), ended in zip(MISSING.items(), found, strict=True):
        assert ended.code == 2, words
        (line,) = ended.err.splitlines()
        assert line.endswith(f'pip install "nispa[{extra}]"'), words


@pytest.mark.ci
def test_tables_say_what_to_install(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "matrix.csv").write_text("0.9,\n0.8,0.7\n")
    made, *missing, export = light.commands(
        packages,
        "import matrix.csv --name a --method b --seed 0 --out R",
        "show R",
        "compare R",
        "export R --to a.parquet",
        at=tmp_path,
    )
    assert made.code == 0
    for ended in missing:
        assert ended.code == 2
        assert ended.err.endswith('pip install "nispa[reports]"\n')
        assert len(ended.err.splitlines()) == 1
    assert export.err.endswith('pip install "nispa[data]"\n')
