"""The named scenarios and their options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from nispa.base.arguments import seed_of
from nispa.base.config import as_json, build, canonical_keys, describe, setting, settings
from nispa.base.modes import usual_modes
from nispa.data.catalog import Remote
from nispa.data.dataset import ImageData, Progress
from nispa.data.permuted import permuted
from nispa.data.scenarios import VALIDATION, Scenario, efmnist, split
from nispa.data.shaping import Reading, Shaping, parse_resize
from nispa.data.sources import load
from nispa.data.standardise import standardised
from nispa.errors import ConfigError, either, unknown_name


@settings
class TaskOptions:
    """What every scenario of images lets one choose."""

    later: ClassVar[tuple[str, ...]] = ()
    """Options added after the first records. A record stores them only if they differ from the
    default, so that older runs keep their identity."""

    validation: float = setting(
        VALIDATION, "share of each task's training images held out to validate on", ge=0, lt=1
    )
    normalise: bool = setting(
        False, "subtract the mean of the training images and divide by their deviation"
    )


@settings
class DataOptions(TaskOptions):
    """Options of a data set and its images."""

    later = ("resize", "crop", "grey", "label", "series", "standardise")

    dataset: str | None = setting(None, "name of a data set, or path of a file or folder")
    resize: str | None = setting(
        None, "scale images to this side in pixels, or HEIGHTxWIDTH", hint="32 and 32x48 will do"
    )
    crop: bool = setting(
        False, "cut out the centre first, in the proportions of resize, else a square"
    )
    grey: bool = setting(False, "turn colour into grey")
    label: str | None = setting(
        None, "column of a table that holds the labels, if not called label, class, target or y"
    )
    series: bool = setting(
        False, "read arrays (n, channels, length), and the columns of a table, as series"
    )
    standardise: bool = setting(
        False, "the same with the mean and deviation of the first task's training images alone"
    )

    def __post_init__(self) -> None:
        self.shaping()
        if self.normalise and self.standardise:
            raise ValueError("normalise and standardise contradict each other; give one of them")

    def shaping(self) -> Shaping:
        """How each image is cropped and scaled.

        Raises:
            ConfigError: ``resize`` is not a size.
        """
        size = None if self.resize is None else parse_resize(self.resize)
        return Shaping(size, self.crop, self.grey)


@settings
class SplitOptions(DataOptions):
    """The classes of one data set, cut into tasks."""

    classes_per_task: int = setting(2, "classes of each task; the last may have fewer", ge=2)
    tasks: str | None = setting(
        None, "the classes of each task instead, such as [[0,1],[2,3,4]]", hint="write it as JSON"
    )
    class_order: Literal["natural", "seeded"] = setting(
        "natural", "order of the classes: as numbered, or shuffled by the seed"
    )


@settings
class EfmnistOptions(TaskOptions):
    """EMNIST balanced in four tasks, then Fashion-MNIST."""

    later = ("class_order",)

    class_order: Literal["natural", "seeded"] = setting(
        "natural",
        "natural, or seeded: EMNIST's classes and then the tasks in an order that the seed draws",
    )


@settings
class PermutedOptions(DataOptions):
    """All classes in every task; each task permutes the pixels."""

    dataset: str | None = setting("mnist", "name of a data set, or path of a file or folder")
    tasks: int = setting(
        10, "number of tasks; the first keeps its pixels in place", ge=1, le=10_000
    )
    share: float = setting(1.0, "share of the pixels that every later task moves", ge=0, le=1)
    shares: tuple[float, ...] | None = setting(
        None, "that share for each task, the first included, instead of tasks and share"
    )
    shared_classes: bool = setting(
        False, "one set of outputs for all tasks; otherwise each task has its own"
    )


Options = SplitOptions | EfmnistOptions | PermutedOptions
Load = Callable[[str, Reading], ImageData]


@dataclass(frozen=True)
class NamedScenario:
    """A named scenario.

    Attributes:
        name: Its name.
        doc: One line.
        options: The settings class for its options.
        defaults: Options that differ from the defaults of that class.
    """

    name: str
    doc: str
    options: type[Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _groups(*sizes: int) -> str:
    first, groups = 0, []
    for size in sizes:
        groups.append(list(range(first, first + size)))
        first += size
    return json.dumps(groups)


def _split(dataset: str, doc: str, **defaults: Any) -> NamedScenario:
    return NamedScenario(f"split-{dataset}", doc, SplitOptions, {"dataset": dataset} | defaults)


_FOUR_GROUPS = _groups(10, 13, 13, 11)
_KNOWN = (
    NamedScenario("split", "any data set (--dataset NAME or PATH), cut by classes", SplitOptions),
    _split("digits", "8×8 digits of scikit-learn, 5 tasks of 2 classes"),
    _split("mnist", "MNIST, 5 tasks of 2 classes"),
    _split("fashion-mnist", "Fashion-MNIST, 5 tasks of 2 classes"),
    _split("emnist-balanced", "EMNIST balanced, 10, 13, 13 and 11 classes", tasks=_FOUR_GROUPS),
    _split("emnist-bymerge", "EMNIST by merge, 10, 13, 13 and 11 classes", tasks=_FOUR_GROUPS),
    _split(
        "emnist-byclass",
        "EMNIST by class: digits, capitals, small letters",
        tasks=_groups(10, 26, 26),
    ),
    _split("emnist-letters", "EMNIST letters, 13 tasks of 2 classes"),
    _split("emnist-digits", "EMNIST digits, 5 tasks of 2 classes"),
    _split("emnist-mnist", "EMNIST's version of MNIST, 5 tasks of 2 classes"),
    _split("cifar10", "CIFAR-10, 5 tasks of 2 classes"),
    _split("cifar100", "CIFAR-100, 20 tasks of 5 classes", classes_per_task=5),
    NamedScenario("efmnist", "EMNIST balanced in 4 tasks, then Fashion-MNIST", EfmnistOptions),
    NamedScenario(
        "permuted-mnist", "MNIST, 10 tasks with all pixels in another order", PermutedOptions
    ),
    NamedScenario(
        "permuted-digits",
        "8×8 digits of scikit-learn, 10 tasks with all pixels in another order",
        PermutedOptions,
        {"dataset": "digits"},
    ),
    NamedScenario(
        "partly-permuted-mnist",
        "MNIST, 5 tasks that permute 0, 25, 50, 75 and 100 % of the pixels",
        PermutedOptions,
        {"shares": (0.0, 0.25, 0.5, 0.75, 1.0)},
    ),
)
SCENARIOS: Mapping[str, NamedScenario] = {known.name: known for known in _KNOWN}
"""The scenarios by name."""


@usual_modes()
def build_scenario(
    name: str,
    *,
    seed: int,
    folder: Path | None = None,
    download: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    remotes: Mapping[str, Sequence[Remote]] | None = None,
) -> Scenario:
    """A scenario by its name.

    Args:
        name: One of :data:`SCENARIOS`.
        seed: Determines class order, validation images, permutations, and the test split of data
            without one.
        folder: Where to look for the data sets; see :func:`nispa.data.sources.load`.
        download: Whether to download a data set that is not found.
        options: Fields of the scenario's settings class; texts are parsed.
        progress: See :func:`nispa.data.sources.load`.
        remotes: See :func:`nispa.data.sources.load`.

    Returns:
        The scenario; its ``settings`` hold all arguments of this call, and their resolved values.

    Raises:
        UnknownNameError: No scenario, option or data set has that name.
        ConfigError: An option has the wrong type or is out of range.
        DataError: The data set is missing or damaged.
        ScenarioError: The tasks asked for cannot be built from it.
    """
    if name not in SCENARIOS:
        raise unknown_name("scenario", name, SCENARIOS)
    seed = seed_of(seed)
    chosen = resolve_options(SCENARIOS[name], options or {})

    def get(dataset: str, how: Reading) -> ImageData:
        reading = vars(replace(how, seed=seed, progress=progress))
        return load(dataset, folder=folder, download=download, remotes=remotes, **reading)

    made = _build(name, chosen, seed, get)
    if isinstance(chosen, DataOptions) and chosen.standardise:
        made = standardised(made)
    usual = {each.name: each.default for each in describe(type(chosen))}
    kept = {
        key: value
        for key, value in as_json(chosen).items()
        if key not in chosen.later or value != usual[key]
    }
    call = {"scenario": name, "seed": seed, "options": kept}
    return replace(made, settings=call | {"resolved": dict(made.settings)})


def resolve_options(known: NamedScenario, given: Mapping[str, Any]) -> Options:
    """The options of a scenario: the given ones override its defaults.

    Raises:
        UnknownNameError: It has no such option.
        ConfigError: A value is out of range, or two contradict each other.
    """
    values = canonical_keys(known.options, given)
    defaults = dict(known.defaults)
    if known.options is SplitOptions:
        if values.get("tasks") is not None:
            _refuse_beside("tasks", ("classes_per_task", "class_order"), values, known)
            if not isinstance(values["tasks"], str):
                values["tasks"] = json.dumps(values["tasks"], default=list)
        if {"classes_per_task", "class_order", "dataset"} & set(values):
            defaults.pop("tasks", None)
    if isinstance(values.get("resize"), int):
        values["resize"] = str(values["resize"])
    if known.options is PermutedOptions:
        if values.get("shares") is not None:
            _refuse_beside("shares", ("tasks", "share"), values, known)
        if {"tasks", "share"} & set(values):
            defaults.pop("shares", None)
    chosen: Options = build(known.options, defaults | values)
    return chosen


def _refuse_beside(
    name: str, others: Sequence[str], values: Mapping[str, Any], known: NamedScenario
) -> None:
    """Refuses two options that contradict each other, unless one has its default value."""
    usual = {each.name: each.default for each in describe(known.options)}
    for other in others:
        if other in values and str(values[other]) != str(usual[other]):
            raise ConfigError(
                f"{name} and {other}={values[other]} contradict each other; give one of them"
            )


def _build(name: str, chosen: Options, seed: int, get: Load) -> Scenario:
    if isinstance(chosen, EfmnistOptions):
        return efmnist(
            get("emnist-balanced", Reading()),
            get("fashion-mnist", Reading()),
            seed=seed,
            validation=chosen.validation,
            normalise=chosen.normalise,
            class_order=chosen.class_order,
        )
    if chosen.dataset is None:
        fix = either("pass options={'dataset': NAME_OR_PATH}", "give --dataset NAME or PATH")
        raise ConfigError(f"scenario {name} needs a data set: {fix}")
    how = Reading(shaping=chosen.shaping(), label=chosen.label, series=chosen.series)
    if isinstance(chosen, PermutedOptions):
        data = get(chosen.dataset, how)
        return permuted(
            data,
            tasks=chosen.tasks,
            share=chosen.share,
            shares=chosen.shares,
            shared_classes=chosen.shared_classes,
            seed=seed,
            validation=chosen.validation,
            normalise=chosen.normalise,
            name=name,
        )
    groups = None if chosen.tasks is None else parse_tasks(chosen.tasks)
    only = None
    if groups is not None and not chosen.normalise:  # its mean needs all classes
        only = {label for group in groups for label in group}
    data = get(chosen.dataset, replace(how, only=only))
    return split(
        data,
        classes_per_task=chosen.classes_per_task,
        tasks=groups,
        class_order=chosen.class_order,
        seed=seed,
        validation=chosen.validation,
        normalise=chosen.normalise,
        name=name,
    )


def parse_tasks(text: str) -> list[list[int]]:
    """Parses tasks in JSON, such as ``[[0,1],[2,3,4]]``.

    Raises:
        ConfigError: It is something else.
    """
    try:
        groups = json.loads(text)
    except (ValueError, RecursionError):
        groups = None
    if groups == []:
        raise ConfigError(f"tasks={text} must have at least one task, such as [[0,1],[2,3,4]]")
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and all(type(label) is int for label in group) for group in groups
    ):
        raise ConfigError(f"tasks={text} must be lists of classes, such as [[0,1],[2,3,4]]")
    return groups
