"""A classifier with scikit-learn's habits: ``fit``, ``partial_fit`` for further tasks, ``predict``.

It is imported on request only: ``from nispa.sklearn import NispaClassifier``.
"""

from __future__ import annotations

import inspect
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

import nispa.base.openmp  # noqa: F401 - before PyTorch
from nispa.base.config import describe
from nispa.data.arrays import as_images
from nispa.errors import CapacityError, ConfigError, ScenarioError, needs, unknown_name
from nispa.learner import Learner
from nispa.methods import METHODS
from nispa.network.models import NetworkConfig

with needs("sklearn", "nispa.sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.metrics import accuracy_score
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y, validate_data

Array = NDArray[Any]


class NispaClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A :class:`nispa.learner.Learner` as a scikit-learn classifier.

    ``fit`` learns one task, from the beginning. Each ``partial_fit`` learns one further task and
    keeps the earlier ones; it is not one more batch of the same data.

    Attributes:
        learner_: The learner, which saves and exports itself.
        classes_: The labels of all tasks learned, ``(n_classes,)``, in rising order.
        n_features_in_: Columns of X, or values of an image.
        feature_names_in_: Names of the columns, if X had some that are texts.
    """

    def __init__(
        self,
        method: str = "nispa",
        *,
        incremental: str = "task",
        preset: str = "default",
        outputs: int | None = None,
        tasks: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        validation: float = 0.1,
        random_state: Any = 0,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        """A classifier that has learned nothing. Settings are checked when it learns.

        Args:
            method: Name of the method, such as ``"nispa"``.
            incremental: What ``partial_fit`` adds, see :class:`nispa.learner.Learner`.
            preset: Named settings to start from.
            outputs: Outputs of the network, one for each class of each task that will ever come;
                None for the classes that the first ``fit`` or ``partial_fit`` is told of.
            tasks: Number of tasks, for methods that need to know it.
            input_shape: Channels, height and width of the images that rows of X are; None to take
                X as it is.
            validation: Share of the samples that decides when to stop.
            random_state: Determines everything random: a whole number, or as scikit-learn's.
            device: Where to compute: ``"cpu"`` or ``"cuda"``.
            settings: Settings of the network or the method, such as ``density=0.1``.
        """
        self.method = method
        self.incremental = incremental
        self.preset = preset
        self.outputs = outputs
        self.tasks = tasks
        self.input_shape = input_shape
        self.validation = validation
        self.random_state = random_state
        self.device = device
        for name, value in settings.items():
            setattr(self, name, value)

    # Parameters: those of the signature, and settings by their names.

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters, with the settings that were given."""
        own: dict[str, Any] = super().get_params(deep)
        return own | self._settings()

    def set_params(self, **params: Any) -> NispaClassifier:
        """Replaces parameters; settings that were not given before can be among them.

        Raises:
            UnknownNameError: There is no such parameter, and no method or network has such a
                setting.
        """
        own = _own_names()
        known = [*own, *_setting_names()]
        for name in params:
            if name not in known and name not in self._settings():
                raise unknown_name("parameter", name, known)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def _settings(self) -> dict[str, Any]:
        """The settings that were given. What scikit-learn or learning adds has an underscore."""
        own = _own_names()
        return {
            name: value
            for name, value in vars(self).items()
            if name not in own and not name.startswith("_") and not name.endswith("_")
        }

    # Learning.

    def fit(self, X: Any, y: Any) -> NispaClassifier:  # noqa: N803
        """Learns one task from the beginning; what was learned before is lost.

        Args:
            X: ``(n, features)``, or images as :meth:`nispa.learner.Learner.learn` takes them.
            y: ``(n,)`` labels, of two classes at least.

        Raises:
            ValueError: X, y or a setting cannot be used.
        """
        X, y = self._labelled(X, y, reset=True)  # noqa: N806
        outputs = len(np.unique(y)) if self.outputs is None else self.outputs
        return self._learn(self._new(X, outputs), X, y, np.unique(y))

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> NispaClassifier:  # noqa: N803
        """Learns a further task; if it fails, the classifier is unchanged.

        Args:
            X: As for :meth:`fit`, all samples of the task.
            y: ``(n,)`` labels. With ``incremental="task"`` they may have occurred before, with
                ``"class"`` they are new, with ``"domain"`` they are those of the first task.
            classes: For the first call unless ``outputs`` is set: the labels of all tasks to come,
                each as often as it will be learned with outputs of its own.

        Raises:
            ValueError: X, y, ``classes`` or a setting cannot be used, or no outputs are left.
        """
        first = not hasattr(self, "learner_")
        X, y = self._labelled(X, y, reset=first)  # noqa: N806
        if classes is not None and (other := set(np.unique(y)) - set(np.unique(classes))):
            raise ScenarioError(f"y has labels {sorted(other)}, which are not among classes")
        if not first:
            self._check_free(y)
            return self._learn(self.learner_, X, y, np.union1d(self.classes_, y))
        if self.outputs is None and classes is None:
            raise ConfigError(
                "the first partial_fit must know how many classes will come: pass classes= with "
                "the labels of all tasks, or set outputs="
            )
        outputs = len(classes) if self.outputs is None else self.outputs
        return self._learn(self._new(X, outputs), X, y, np.unique(y))

    def _check_free(self, y: Array) -> None:
        """Refuses a task with more classes than outputs are left for."""
        if self.learner_.settings.config.incremental == "domain":
            return
        outputs, classes = self.learner_.method.problem.outputs, len(np.unique(y))
        free = outputs - sum(len(task.classes) for task in self.learner_.tasks)
        if classes > free:
            raise CapacityError(
                f"this task has {classes} classes, but only {free} of {outputs} outputs are free; "
                "begin again with a larger outputs="
            )

    def _new(self, X: Array, outputs: int) -> Learner:  # noqa: N803
        seed = self.random_state
        if not isinstance(seed, SupportsIndex):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        return Learner(
            self.method,
            input_shape=tuple(as_images(X[:1])[0].shape[1:]),
            classes=outputs,
            tasks=self.tasks,
            preset=self.preset,
            seed=seed,
            device=self.device,
            incremental=self.incremental,
            **self._settings(),
        )

    def _learn(
        self,
        learner: Learner,
        X: Array,  # noqa: N803
        y: Array,
        classes: Array,
    ) -> NispaClassifier:
        learner.learn(X, np.array([_told(label) for label in y]), validation=self.validation)
        self.learner_, self.classes_ = learner, classes
        return self

    # Predictions.

    def predict(self, X: Any, task: SupportsIndex | None = None) -> Array:  # noqa: N803
        """Labels, of the kind given to ``fit``.

        Args:
            X: As for :meth:`fit`.
            task: The task that the samples belong to, from 0; None to choose among the labels of
                all tasks, which methods with a network for each task cannot.

        Returns:
            ``(n,)``.

        Raises:
            NotLearnedError: The task has not been learned, or the method must be told one.
        """
        X = self._samples(X)  # noqa: N806
        return self.classes_[self._places(self.learner_.predict(X, self._task(task)).tolist())]

    def predict_proba(
        self,
        X: Any,  # noqa: N803
        task: SupportsIndex | None = None,
    ) -> NDArray[np.float64]:
        """The soft-max of the scores; not calibrated, networks tend to be overconfident.

        Args:
            X: As for :meth:`fit`.
            task: As for :meth:`predict`; labels of other tasks then have probability 0.

        Returns:
            ``(n, n_classes)``, a column for each of ``classes_``. A label that several tasks with
            outputs of their own share gets the sum of these outputs, so without a task its row's
            largest value need not be the label that :meth:`predict` returns.
        """
        X, place = self._samples(X), self._task(task)  # noqa: N806
        shares = self.learner_.predict_proba(X, place)
        summed = np.zeros((len(shares), len(self.classes_)))
        for column, label in enumerate(self._places(self.learner_.classes_of(place))):
            summed[:, label] += shares[:, column]
        return summed

    def score(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        task: SupportsIndex | None = None,
    ) -> float:
        """The share of samples that :meth:`predict` labels correctly."""
        return float(accuracy_score(y, self.predict(X, task), sample_weight=sample_weight))

    def _task(self, task: SupportsIndex | None) -> SupportsIndex | None:
        """The task given; the only one there is needs no name."""
        return 0 if task is None and len(self.learner_.tasks) == 1 else task

    def _places(self, told: list[Any]) -> list[int]:
        """The places in ``classes_`` of labels as the learner knows them."""
        places = {_told(label): place for place, label in enumerate(self.classes_)}
        return [places[label] for label in told]

    # Inputs.

    def _labelled(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Array]:  # noqa: N803
        if _dimensions(X) > 2:
            X, y = check_X_y(X, y, allow_nd=True, estimator=self)  # noqa: N806
            size = int(np.prod(X.shape[1:]))
            if reset:
                self.n_features_in_ = size
        else:
            X, y = validate_data(self, X, y, reset=reset)  # noqa: N806
        check_classification_targets(y)
        if len(np.unique(y)) < 2:
            raise ScenarioError(f"y has one class, {y[0]!r}; a task needs at least two")
        return self._shaped(X), y

    def _samples(self, X: Any) -> Array:  # noqa: N803
        check_is_fitted(self, "learner_")
        if _dimensions(X) > 2:
            return self._shaped(check_array(X, allow_nd=True, estimator=self))
        return self._shaped(validate_data(self, X, reset=False))

    def _shaped(self, X: Array) -> Array:  # noqa: N803
        """Rows as the images that they are, if the classifier was told so."""
        if self.input_shape is None or X.ndim != 2:
            return X
        shape = tuple(self.input_shape)
        if int(np.prod(shape)) != X.shape[1]:
            raise CapacityError(
                f"X has {X.shape[1]} columns, but an image of input_shape={shape} has "
                f"{int(np.prod(shape))} values"
            )
        return X.reshape(len(X), *shape)


def _own_names() -> list[str]:
    """The parameters of the signature but ``settings``."""
    found = inspect.signature(NispaClassifier.__init__).parameters.values()
    return [each.name for each in found if each.kind is not each.VAR_KEYWORD][1:]


def _setting_names() -> list[str]:
    """The settings of every network and method."""
    classes: list[type[Any]] = [NetworkConfig]
    classes += [method.config_class for method in METHODS.values()]
    return list(dict.fromkeys(field.name for each in classes for field in describe(each)))


def _dimensions(X: Any) -> int:  # noqa: N803
    return len(X.shape) if hasattr(X, "shape") else np.asarray(X).ndim


def _told(label: Any) -> int | str:
    """A label as the learner knows it: a whole number or a text."""
    if isinstance(label, (bool, np.bool_)):
        return str(label)
    if isinstance(label, (int, np.integer)) or (
        isinstance(label, (float, np.floating)) and float(label).is_integer()
    ):
        return int(label)
    return str(label)
