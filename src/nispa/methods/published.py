"""Published hyper-parameters and published behaviour, as data.

Sources: Gurbuz and Dovrolis 2022 (arXiv 2206.09117) and its published scripts for ``efmnist``,
``cifar10``, ``cifar100`` and ``mnist``: NISPA's settings, those of NISPA-Replay, of the baselines
that they compare with, and of their single-task networks, which fine-tuning and joint training
share here. Baselines are dense, as published. Nothing is published there for ``l2``, ``ewc-online``
(EWC's settings), ``packnet``, ``wsn``, ``piggyback``, ``supsup`` and the methods of ``_replay``;
theirs are chosen here, as are those of NISPA-Replay on CIFAR-100: CIFAR-10's, with twice the memory
and the tolerance that NISPA has there. NISPA-Context has NISPA's, and NICE's for its logistic
models. HAT's are those of its own paper, NICE's those of its published code; so are SpaceNet's on
MNIST, and chosen here on other data. ``digits`` is chosen for 8x8 images, by hand. What was tuned
since is in :mod:`.tuned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nispa.network.models import ARCHITECTURES

Values = Mapping[str, Any]


BOUNDS = ("stl", "stl-iso", "finetune", "joint")
RENEWING = ("cbp", "redo")
DENSE = (
    "l2",
    "ewc",
    "ewc-online",
    "si",
    "mas",
    "clnp",
    "packnet",
    "wsn",
    "piggyback",
    "supsup",
    "hat",
    "nice",
)
"""Methods whose published comparison is with dense networks."""


def _same(methods: tuple[str, ...], values: Values) -> dict[str, Values]:
    """The same settings for several methods."""
    return dict.fromkeys(methods, values)


def _plain(learning_rate: float, batch_size: int, epochs: int) -> dict[str, Values]:
    """Settings that all methods share which train a task in one go."""
    values = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
    return _same((*BOUNDS, *RENEWING), values)


def _regularised(
    learning_rate: float,
    epochs: int,
    patience: int,
    samples: int,
    ewc: tuple[int, float],
    si: tuple[int, float],
    mas: tuple[int, float, int],
    l2: float,
) -> dict[str, Values]:
    """Settings of the methods with a penalty: batch size and strength of each.

    Args:
        learning_rate: Of all.
        epochs: Of all, at most.
        patience: Of all but MAS.
        samples: On which the Fisher information is measured.
        ewc: Of both forms.
        si: Likewise.
        mas: Likewise, and its patience.
        l2: The strength alone; the rest is EWC's. No such settings are published.
    """
    shared = {"learning_rate": learning_rate, "epochs": epochs, "patience": patience}
    fisher = {**shared, "batch_size": ewc[0], "strength": ewc[1], "samples": samples}
    return {
        "l2": {**shared, "batch_size": ewc[0], "strength": l2},
        "ewc": fisher,
        "ewc-online": fisher,
        "si": {**shared, "batch_size": si[0], "strength": si[1]},
        "mas": {**shared, "patience": mas[2], "batch_size": mas[0], "strength": mas[1]},
    }


def _nispa(
    learning_rate: float, batch_size: int, accuracy_drop: float, **context: Any
) -> dict[str, Values]:
    """Settings of NISPA; NISPA-Context has them with its own, which NICE publishes."""
    values = {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "accuracy_drop": accuracy_drop,
    }
    return {"nispa": values, "nispa-context": {**values, **context}}


def _subnetworks(learning_rate: float, batch_size: int, epochs: int) -> dict[str, Values]:
    """Settings of the methods that choose parts of a network; those of PackNet, where alike."""
    values = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
    return {"wsn": values, "piggyback": values, "supsup": values}


HAT: Values = {
    "optimiser": "sgd",
    "momentum": 0.0,
    "learning_rate": 0.05,
    "batch_size": 64,
    "epochs": 200,
    "strength": 0.75,
    "s_max": 400.0,
}
"""Settings of HAT that Serra et al. 2018 (arXiv 1801.01423) publish; used here for all data."""

SPACENET_BUDGET = (0.031888, 0.01025, 0.02)
"""What SpaceNet publishes for each of five tasks on an MLP 784-400-400: 10,000, 1,640 and 80
connections. Its shares of units, 80 of 400 and 40 of them for good, are the method's own for five
tasks."""


def _nice(
    learning_rate: float, epochs_per_phase: int, fit_strength: float, **more: Any
) -> dict[str, Values]:
    """Settings of NICE, with those that it publishes for all data."""
    values = {
        "optimiser": "sgd",
        "learning_rate": learning_rate,
        "batch_size": 32,
        "epochs_per_phase": epochs_per_phase,
        "fit_strength": fit_strength,
        **more,
    }
    return {"nice": values}


REPLAY = ("rehearsal", "er", "der", "derpp", "a-gem", "gem", "icarl", "fdr")


def _replay(memory: int, epochs: int) -> dict[str, Values]:
    """Settings of the methods with a memory, near those of common libraries."""
    every: Values = {"memory": memory, "epochs": epochs}
    sgd = {**every, "optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.1, "batch_size": 32}
    adam = {**every, "learning_rate": 0.001, "batch_size": 128}
    return {
        "rehearsal": sgd,
        "er": {**sgd, "batch_size": 10, "memory_batch": 10},
        "der": {**sgd, "memory_batch": 64, "alpha": 0.5},
        "derpp": {**sgd, "memory_batch": 64, "alpha": 0.2, "beta": 1.0},
        "a-gem": {**sgd, "batch_size": 10, "memory_batch": 256},
        "gem": adam,
        "icarl": {**adam, "epochs": 2 * epochs},
        "fdr": {**adam, "epochs": 2 * epochs, "alpha": 5.0},
    }


@dataclass(frozen=True)
class Benchmark:
    """Hyper-parameters for one kind of data.

    Attributes:
        doc: One line.
        network: Of the network.
        methods: Of each method, by its name.
        networks: Exceptions for the network of a method, by the method's name.
    """

    doc: str
    network: Values
    methods: Mapping[str, Values]
    networks: Mapping[str, Values] = field(default_factory=dict)


BENCHMARKS: dict[str, Benchmark] = {
    "efmnist": Benchmark(
        "published: MLP 784-400-400-400, EMNIST and Fashion-MNIST in 5 tasks",
        {"architecture": "mlp", "hidden": (400, 400, 400), "density": 0.2},
        {
            **_nispa(0.01, 512, 0.75, fit_strength=0.15),
            "nispa-replay": {
                "optimiser": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.05,
                "batch_size": 128,
                "accuracy_drop": 2.0,
                "min_phases": 5,
                "memory": 5700,
                "replay_weight": 1.0,
            },
            "clnp": {
                "learning_rate": 0.01,
                "batch_size": 512,
                "epochs": 20,
                "l1": 1e-5,
                "margin": 0.5,
            },
            "packnet": {"learning_rate": 0.001, "batch_size": 128, "epochs": 20},
            **_subnetworks(0.001, 128, 20),
            "hat": HAT,
            "spacenet": {
                "budget": (*SPACENET_BUDGET[:2], *SPACENET_BUDGET[1:]),  # there is a layer more
                "learning_rate": 0.001,
                "batch_size": 128,
                "epochs": 20,
            },
            **_nice(0.005, 5, 0.15),
            **_regularised(
                0.01, 20, 3, 1000, ewc=(256, 10_000), si=(512, 100), mas=(512, 1000, 3), l2=0.01
            ),
            **_replay(memory=5700, epochs=2),
            **_plain(0.01, 128, 20),
        },
        {
            **_same((*DENSE, *REPLAY, "spacenet"), {"density": 1.0}),
            "nispa-replay": {"density": 0.3},
        },
    ),
    "mnist": Benchmark(
        "published: MLP 784-400-400-400, MNIST in 5 tasks of 2 classes, class-incremental",
        {"architecture": "mlp", "hidden": (400, 400, 400), "density": 0.1},
        {
            **_nispa(0.01, 512, 0.75),
            "nispa-replay": {
                "optimiser": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.1,
                "batch_size": 256,
                "accuracy_drop": 0.5,
                "min_phases": 3,
                "memory": 1000,
                "replay_weight": 5.0,
            },
            "clnp": {"learning_rate": 0.01, "batch_size": 512, "l1": 1e-5, "margin": 0.5},
            "packnet": {"learning_rate": 0.001, "batch_size": 128, "epochs": 20},
            **_subnetworks(0.001, 128, 20),
            "hat": HAT,
            "spacenet": {
                "budget": SPACENET_BUDGET,
                "optimiser": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.01,
                "batch_size": 128,
                "epochs": 4,
            },
            **_nice(0.01, 5, 0.4),
            **_regularised(
                0.01, 20, 3, 1000, ewc=(256, 10_000), si=(512, 100), mas=(512, 1000, 3), l2=0.01
            ),
            **_replay(memory=1000, epochs=1),
            **_plain(0.01, 128, 20),
        },
        {
            **_same((*DENSE, *REPLAY), {"density": 1.0}),
            **_same(("nispa", "nispa-context"), {"density": 0.2}),
            "spacenet": {"hidden": (400, 400), "density": 1.0},
        },
    ),
    "cifar10": Benchmark(
        "published: ConvNet 64-64-128-128, CIFAR-10 in 5 tasks of 2 classes",
        {"architecture": "convnet", "density": 0.1},
        {
            **_nispa(0.002, 128, 0.75, fit_strength=0.01, samples_per_class=150),
            "nispa-replay": {
                "learning_rate": 0.002,
                "batch_size": 512,
                "accuracy_drop": 2.0,
                "k": 40,
                "min_phases": 5,
                "memory": 1000,
                "replay_weight": 5.0,
            },
            "clnp": {
                "learning_rate": 0.001,
                "batch_size": 128,
                "epochs": 50,
                "l1": 1e-4,
                "margin": 0.75,
            },
            "packnet": {
                "learning_rate": 0.001,
                "batch_size": 256,
                "epochs": 40,
                "retrain_epochs": 20,
            },
            **_subnetworks(0.001, 256, 40),
            "hat": HAT,
            "spacenet": {"learning_rate": 0.001, "batch_size": 256, "epochs": 40},
            **_nice(0.01, 10, 0.01, samples_per_class=150, weight_decay=0.0002),
            **_regularised(
                0.001, 50, 3, 2000, ewc=(128, 5000), si=(256, 10), mas=(256, 1, 3), l2=0.01
            ),
            **_replay(memory=1000, epochs=20),
            **_plain(0.001, 256, 40),
        },
        {
            **_same(DENSE, {"density": 1.0, "fc": (512,)}),
            **_same(
                ("clnp", "packnet", "wsn", "piggyback", "supsup", "hat", "nice"), {"density": 1.0}
            ),
        },
    ),
    "cifar100": Benchmark(
        "published: ConvNet 64-64-128-128, CIFAR-100 in 20 tasks of 5 classes",
        {"architecture": "convnet", "density": 0.1},
        {
            **_nispa(0.002, 64, 2.5, fit_strength=0.005),
            "nispa-replay": {
                "learning_rate": 0.002,
                "batch_size": 512,
                "accuracy_drop": 2.5,
                "k": 40,
                "min_phases": 5,
                "memory": 2000,
                "replay_weight": 5.0,
            },
            "clnp": {
                "learning_rate": 0.001,
                "batch_size": 32,
                "epochs": 50,
                "l1": 1e-5,
                "margin": 1.0,
            },
            "packnet": {
                "learning_rate": 0.001,
                "batch_size": 64,
                "epochs": 40,
                "retrain_epochs": 20,
            },
            **_subnetworks(0.001, 64, 40),
            "hat": HAT,
            "spacenet": {"learning_rate": 0.001, "batch_size": 64, "epochs": 40},
            **_nice(0.005, 15, 0.005, weight_decay=0.002),
            **_regularised(
                0.001, 50, 3, 1000, ewc=(32, 20_000), si=(32, 1000), mas=(32, 1000, 5), l2=0.01
            ),
            **_replay(memory=2000, epochs=20),
            **_plain(0.001, 64, 40),
        },
        {
            **_same(DENSE, {"density": 1.0, "fc": (512,)}),
            **_same(
                ("clnp", "packnet", "wsn", "piggyback", "supsup", "hat", "nice"), {"density": 1.0}
            ),
        },
    ),
    "digits": Benchmark(
        "small MLP 64-100-100-100 for 8x8 digits",
        {"architecture": "mlp", "hidden": (100, 100, 100), "density": 0.2},
        {
            **_nispa(0.01, 32, 2.0),
            "nispa-replay": {
                "learning_rate": 0.01,
                "batch_size": 32,
                "accuracy_drop": 2.0,
                "memory": 200,
            },
            "clnp": {"learning_rate": 0.01, "batch_size": 32, "margin": 1.0},
            "packnet": {"learning_rate": 0.01, "batch_size": 32, "epochs": 20},
            **_subnetworks(0.01, 32, 20),
            "hat": {**HAT, "batch_size": 16, "learning_rate": 0.2},
            "spacenet": {
                "budget": (0.05, 0.01, 0.01, 0.02),
                "optimiser": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.1,
                "batch_size": 32,
                "epochs": 20,
            },
            **_nice(0.02, 10, 0.4),
            **_regularised(
                0.01, 20, 3, 1000, ewc=(32, 1000), si=(32, 10), mas=(32, 100, 3), l2=0.01
            ),
            **_replay(memory=200, epochs=10),
            **_plain(0.01, 32, 20),
        },
        _same((*DENSE, "spacenet"), {"density": 1.0}),
    ),
}


def benchmark_with(architecture: str) -> Benchmark:
    """The first benchmark with an architecture; one that none has takes CIFAR-10's settings.

    Sizes of another architecture are left out.
    """
    for benchmark in BENCHMARKS.values():
        if benchmark.network["architecture"] == architecture:
            return benchmark
    nearest = BENCHMARKS["cifar10"]
    foreign = ARCHITECTURES[nearest.network["architecture"]].own_settings()
    networks = {
        method: {name: value for name, value in values.items() if name not in foreign}
        for method, values in nearest.networks.items()
    }
    return replace(nearest, networks=networks)


SCENARIO_BENCHMARKS = {
    "efmnist": "efmnist",
    "split-mnist": "mnist",
    "split-digits": "digits",
    "permuted-digits": "digits",
    "split-cifar10": "cifar10",
    "split-cifar100": "cifar100",
}

PAPER_NETWORK: dict[str, Values] = {
    "mlp": {"mask": "bernoulli", "fan": "positions", "init": "fan_out", "bias": "uniform"},
    "convnet": {"mask": "bernoulli", "fan": "positions", "init": "fan_in", "bias": "zero"},
}

PAPER_NETWORKS: dict[str, Values] = {
    **_same(
        ("l2", "ewc", "ewc-online", "si", "mas", "nice"),
        {"init": "fan_in", "gain": 6**-0.5, "bias": "uniform"},
    ),
    "spacenet": {"init": "fan_in", "bias": "zero"},
}
"""Exceptions for the network of a method: deviations as in PyTorch's own initialisation, or zero
biases."""

PAPER_METHODS: dict[str, Values] = {
    **_same(("l2", "ewc", "ewc-online", "si", "mas"), {"keep": "last"}),
    "clnp": {"restart_init": "fan_out"},
    "piggyback": {"mask_rate": 0.0001},
    **_same(
        ("nispa", "nispa-context"),
        {
            "restart_init": "fan_out",
            "other_logits": "zero",
            "demote_unsupported": False,
            "revive_with_growth": False,
            "carry_over": False,
            "stop_when_full": False,
        },
    ),
    "nispa-replay": {
        "other_logits": "keep",
        "demote_unsupported": False,
        "revive_with_growth": False,
        "carry_over": False,
    },
}
