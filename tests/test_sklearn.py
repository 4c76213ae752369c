"""The classifier: scikit-learn's own checks, and what tasks add to its habits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("sklearn", "1.6")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nispa.errors import CapacityError, ConfigError, NotLearnedError, UnknownNameError
from nispa.sklearn import NispaClassifier

TINY: dict[str, Any] = {"hidden": (16,), "density": 0.8, "batch_size": 16, "learning_rate": 0.05}
PHASES: dict[str, Any] = {**TINY, "max_phases": 3, "epochs_per_phase": 6}
EXCEPTIONS = {
    "check_no_attributes_set_in_init": "settings are parameters that the signature does not list",
}
"""Checks of scikit-learn that do not apply, with the reason."""

tables_as_they_come = pytest.mark.filterwarnings("ignore::UserWarning")


@tables_as_they_come
@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [NispaClassifier("finetune", outputs=12, epochs=15, **TINY)],
    expected_failed_checks=lambda _: EXCEPTIONS,
    xfail_strict=True,
)
def test_keeps_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.ci
@tables_as_they_come
@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [NispaClassifier(outputs=12, **{**PHASES, "epochs_per_phase": 3})],
    expected_failed_checks=lambda _: EXCEPTIONS,
    xfail_strict=True,
)
def test_keeps_scikit_learns_contract_with_nispa(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_page_lists_every_exception() -> None:
    page = (Path(__file__).parents[1] / "docs" / "howto" / "python.md").read_text()
    assert all(f"| `{check}` | {reason} |" in page for check, reason in EXCEPTIONS.items())


def blobs(seed: int, names: tuple[Any, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points (60, 4) around a corner for each name, other corners for other seeds."""
    random = np.random.default_rng(seed)
    which = np.arange(60) % len(names)
    corners = random.permutation(2 * np.eye(4))[: len(names)]
    return corners[which] + random.normal(0, 0.2, (60, 4)), np.array(names)[which]


def test_a_further_task_leaves_the_first_as_it_was() -> None:
    (first, given), (second, more) = blobs(1, ("a", "b")), blobs(2, ("c", "d", "e"))
    made = NispaClassifier(**PHASES).partial_fit(first, given, classes=list("abcde"))
    before = made.predict_proba(first, task=0)
    made.partial_fit(second, more)
    assert made.classes_.tolist() == list("abcde")
    assert (made.predict_proba(first, task=0)[:, :2] == before).all()
    assert not made.predict_proba(first, task=0)[:, 2:].any()
    assert made.score(first, given, task=0) == made.score(second, more, task=1) == 1
    assert made.predict(first).shape == (60,)
    assert np.allclose(made.predict_proba(first).sum(1), 1)


def test_labels_of_several_tasks_share_their_column() -> None:
    made = NispaClassifier(outputs=4, **PHASES)
    made.partial_fit(*blobs(1, (False, True))).partial_fit(*blobs(2, (False, True)))
    assert made.classes_.dtype == bool
    assert made.score(*blobs(2, (False, True)), task=1) == 1
    shares = made.predict_proba(blobs(1, (False, True))[0])
    assert shares.shape == (60, 2)
    assert np.allclose(shares.sum(1), 1)


def test_the_only_task_needs_no_name_but_one_of_two_does() -> None:
    made = NispaClassifier("packnet", outputs=4, epochs=5, retrain_epochs=2, **TINY)
    made.partial_fit(*blobs(1, (0, 1)))
    assert made.score(*blobs(1, (0, 1))) > 0.9
    made.partial_fit(*blobs(2, (0, 1)))
    with pytest.raises(NotLearnedError, match="task="):
        made.predict(blobs(1, (0, 1))[0])


def test_a_failed_task_changes_nothing() -> None:
    made = NispaClassifier("finetune", epochs=5, **TINY)
    points, labels = blobs(1, (0, 1))
    with pytest.raises(ConfigError, match="outputs="):
        made.partial_fit(points, labels)
    made.fit(points, labels)
    before = made.predict_proba(points)
    with pytest.raises(CapacityError, match="outputs="):
        made.partial_fit(*blobs(2, (2, 3)))
    assert made.classes_.tolist() == [0, 1]
    assert (made.predict_proba(points) == before).all()


def test_settings_are_parameters() -> None:
    made = NispaClassifier("finetune", epochs=5, **TINY)
    assert made.get_params()["density"] == 0.8
    assert clone(made).set_params(density=0.5, weight_decay=0.1).get_params() == {
        **made.get_params(),
        "density": 0.5,
        "weight_decay": 0.1,
    }
    with pytest.raises(UnknownNameError, match="density"):
        made.set_params(densitty=0.5)
    search = GridSearchCV(made, {"density": [0.5, 1.0]}, cv=2).fit(*blobs(1, (0, 1)))
    assert search.best_score_ == 1
    assert search.best_estimator_.learner_.settings.network.density in (0.5, 1.0)


def test_rows_can_be_images() -> None:
    points, labels = blobs(1, (0, 1))
    made = NispaClassifier("finetune", input_shape=(1, 2, 2), epochs=5, **TINY)
    assert make_pipeline(StandardScaler(), made).fit(points, labels).score(points, labels) == 1
    assert made.learner_.method.problem.input_shape == (1, 2, 2)
    images = points.reshape(-1, 2, 2)
    other = NispaClassifier("finetune", epochs=5, **TINY).fit(images, labels)
    assert other.n_features_in_ == 4
    assert other.score(images, labels) == 1
    with pytest.raises(CapacityError, match="columns"):
        made.set_params(input_shape=(1, 3, 3)).fit(points, labels)
