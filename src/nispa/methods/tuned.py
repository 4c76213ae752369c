"""Hyper-parameters that were tuned by validation accuracy, as data.

docs/log.md has the trials. With a fan that counts live connections, first values come out two to
three times as large as those that the published learning rate was chosen for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nispa.methods.published import Values


@dataclass(frozen=True)
class Tuning:
    """Settings that were tuned, of the network and of the method."""

    network: Values = field(default_factory=dict)
    method: Values = field(default_factory=dict)


DEFAULT: dict[tuple[str, str], Tuning] = {
    ("efmnist", "nispa"): Tuning({"gain": 0.5}, {"optimiser": "adamw", "weight_decay": 0.1}),
    ("efmnist", "nispa-context"): Tuning(
        {"gain": 0.5}, {"optimiser": "adamw", "weight_decay": 0.1}
    ),
    ("mnist", "nispa"): Tuning({"gain": 0.5}, {"optimiser": "adamw", "weight_decay": 0.1}),
    ("mnist", "nispa-context"): Tuning(
        {"gain": 0.5},
        {"optimiser": "adamw", "weight_decay": 0.1, "unit_share": 0.25},
    ),
    ("mnist", "nispa-replay"): Tuning(
        {},
        {
            "optimiser": "adamw",
            "learning_rate": 0.0041,
            "weight_decay": 0.26,
            "k": 12.0,
            "accuracy_drop": 1.0,
            "min_phases": 5,
            "restart": True,
        },
    ),
    ("mnist", "er"): Tuning({}, {"learning_rate": 0.093, "memory_batch": 64}),
    ("mnist", "der"): Tuning({}, {"learning_rate": 0.16, "alpha": 0.74}),
    ("mnist", "derpp"): Tuning({}, {"learning_rate": 0.065, "alpha": 0.78, "beta": 1.9}),
    ("mnist", "rehearsal"): Tuning({}, {"learning_rate": 0.088, "batch_size": 10}),
    ("mnist", "fdr"): Tuning({}, {"learning_rate": 0.00031, "alpha": 6.0}),
    ("mnist", "icarl"): Tuning({}, {"epochs": 4}),
    ("mnist", "gem"): Tuning({}, {"learning_rate": 0.00039, "batch_size": 32}),
    ("mnist", "a-gem"): Tuning({}, {"learning_rate": 0.093}),
}
"""What the preset ``default`` changes of a benchmark's published hyper-parameters, by benchmark and
method, where these do not suit the correct version."""

BEST: dict[tuple[str, str], Tuning] = {
    ("efmnist", "nispa"): Tuning(
        {},
        {
            "growth": "from_plastic",
            "refill": True,
            "decay": "linear",
            "min_phases": 7,
            "drop_errors": 2.0,
            "derived": ("unit_share",),
            "share_factor": 0.5,
            "settle_epochs": 40,
        },
    ),
    ("efmnist", "stl"): Tuning({}, {"decay": "linear", "epochs": 40}),
}
"""What the preset ``best`` changes of ``default``. It was chosen with images shifted by a pixel."""

PRESETS = {"default": (DEFAULT,), "best": (DEFAULT, BEST)}
"""The presets that take tuned settings; later ones override earlier ones."""


def tuned(preset: str, benchmark: str, method: str) -> Tuning:
    """The tuned settings of a preset for a method on a benchmark; none where nothing was tuned."""
    found = [table[benchmark, method] for table in PRESETS[preset] if (benchmark, method) in table]
    network = {name: value for each in found for name, value in each.network.items()}
    config = {name: value for each in found for name, value in each.method.items()}
    return Tuning(network, config)
