"""NISPA-Replay: NISPA for classes that come task by task and are predicted without the task.

Gurbuz and Dovrolis, "NISPA: Neuro-Inspired Stability-Plasticity Adaptation for Continual Learning
in Sparse Networks", ICML 2022, arXiv 2206.09117: the class-incremental variant in its published
code. Phases, candidates, dropping, growing and the stop rule are those of nispa.py. Besides,

- a memory holds ``memory`` samples of earlier tasks, equally many of each class, at random;
- each step goes down the gradient of

      L = CE(new batch) + lambda CE(memory batch)

  over the classes seen so far, with ``replay_weight`` as lambda and batches of the same size;
- the layer into the outputs is never frozen: the outputs of old classes must still learn to differ
  from new ones. What a stable hidden unit computes never changes; logits do. As in NISPA, the
  outputs of seen classes lose the connections from plastic units;
- plastic values continue from where a task left them; nothing is drawn again.

Candidates are selected by their activity on the new task's images. Its validation images, among all
classes seen, decide when the task ends.

Differences from the published code. Each is a setting, and the preset ``paper`` chooses the
published behaviour; ``demote_unsupported``, ``revive_with_growth``, ``carry_over`` and the
network's ``mask``, ``fan``, ``init``, ``bias`` are as in nispa.py. Besides:
- ``other_logits``: there, outputs of later classes are in the soft-max. Here they are left out.
- ``keep``: there, a phase ends with its last epoch; ``best`` takes the one that is best on the
  validation images.
- ``validate``: there, these are the new task's alone; ``seen`` adds the memory, so that each class
  seen counts the same.
- ``output_rewiring``: there, what the output of a seen class loses grows into those of later
  classes, so it may be left with few connections, and no output of a seen class ever reads a new
  unit; with true it is brought up to its share again, from stable units and candidates.
In both the memory takes training images only (there, those of validation too) and shares its size
without a remainder (there, each class has ``memory // classes`` samples); a prediction names a
class that was seen (there, any).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nispa.base.config import setting, settings
from nispa.base.seeding import stream
from nispa.data.tasks import Task, TaskInfo
from nispa.mechanism.grow import choose, growth_values
from nispa.mechanism.rewire import Rewiring
from nispa.methods.base import Incremental, Learning, Method
from nispa.methods.epochs import Keep
from nispa.methods.nispa import Nispa
from nispa.methods.nispa_config import NispaConfig
from nispa.methods.nispa_phases import Phases
from nispa.methods.parts import SampleMemory
from nispa.methods.replay import check_size
from nispa.methods.stable import freeze_stable
from nispa.network.models import DataSet, SparseNetwork
from nispa.network.topology import Patterns, UnitSets, complement, live_between
from nispa.training.fit import (
    EVALUATION_BATCH,
    Batch,
    ClassMask,
    Step,
    Term,
    Ways,
    gradient_of,
    network_step,
)
from nispa.training.memory import Memory


@settings
class NispaReplayConfig(NispaConfig):
    """Settings of NISPA-Replay: those of NISPA and of its memory."""

    incremental: Incremental = setting("class", "what a task adds: new classes among all seen")
    restart: bool = setting(
        False,
        "draw plastic weights again after each task, except those into outputs of seen classes",
    )
    stop_when_full: bool = setting(
        False,
        "a task that finds no plastic unit it could use ends after min_phases and one more; the "
        "outputs of all tasks could still learn",
    )
    memory: int = setting(
        1000,
        "samples kept, of all tasks together",
        ge=1,
        le=10_000_000,
        aliases=("memory_size", "buffer_size"),
        hint="1000 is usual; nispa keeps none",
    )
    replay_weight: float = setting(
        5.0, "weight of the memory batch's loss beside the new batch's", ge=0, aliases=("lambda",)
    )
    output_rewiring: bool = setting(
        False, "connections that an output loses grow into it again, from stable units"
    )
    validate: Literal["new", "seen"] = setting(
        "new", "accuracy counts the new task's validation images, or the memory with them"
    )
    keep: Keep = setting(
        "last", "the epoch a phase ends with: best on the new task's validation images, or the last"
    )


class NispaReplay(Nispa):
    """Class-incremental NISPA with a memory.

    Attributes:
        memory: Samples of the tasks learned.
    """

    name = "nispa-replay"
    forgets_nothing = "no"
    published = "Gurbuz and Dovrolis, ICML 2022"
    config_class = NispaReplayConfig
    carries = (*Nispa.carries, SampleMemory())
    incremental = ("class",)
    forget = Method.forget  # the memory and the outputs of other tasks know the task, too
    adopt = Method.adopt  # its outputs go on learning
    config: NispaReplayConfig
    memory: Memory

    def check(self, task: Task, earlier: Sequence[TaskInfo]) -> None:
        """Checks also that the memory has room for a sample of each class."""
        super().check(task, earlier)
        classes = sum(len(info.classes) for info in (*earlier, task.info))
        check_size(self.config.memory, classes, task)

    def learn_task(self, task: Task) -> Learning:
        """Learns in NISPA's phases, with replay; then the memory takes samples of the task."""
        train, validation = self.prepare_both(self.network, task)
        classes = self.class_mask(sorted({*self.classes_seen, *task.classes}))
        report, self.stable = yield from self.learn_in_phases(
            Phases(
                task,
                classes,
                train,
                validation,
                step=lambda t, optimiser: self.step(task, classes, t, optimiser),
                validate=lambda: self.validate(task, classes, validation),
                rewire=self.rewire_outputs if self.config.output_rewiring else self.rewire,
                restart=lambda seed: self.restart(task, seed),
            )
        )
        freeze_stable(self.network, self.stable, outputs=False)
        if self.config.restart:
            self.restart(task)
        samples = task.train.to(self.device)
        self.memory.balance(samples, task.index, stream(self.seed, "memory", task.index))
        return report

    def step(
        self, task: Task, classes: ClassMask, t: int, optimiser: torch.optim.Optimizer
    ) -> Step:
        """One update in phase ``t``, by a new batch and one from memory."""
        loss, weight = self.loss(classes), self.config.replay_weight
        if not len(self.memory) or not weight:
            return network_step(self.network, loss, optimiser)

        def remembered(logits: Tensor, wanted: Tensor) -> Tensor:
            return loss(logits, wanted[:, 0])

        ways: Ways = {}

        def step(batch: Batch) -> Tensor:
            drawn = self.memory.draw(
                self.config.batch_size,
                stream(self.seed, "memory batch", task.index, t, batch.epoch, batch.number),
            )
            new = Term(batch.images, batch.labels, loss)
            old = Term(drawn.images, drawn.wanted, remembered, weight)
            value = gradient_of(self.network, [new, old], ways)
            optimiser.step()
            return value

        return step

    def validate(self, task: Task, classes: ClassMask, validation: DataSet) -> float | None:
        """Accuracy on the new task; with ``validate=seen`` the mean over all classes seen."""
        new = self.validator(self.network, classes, validation)()
        if self.config.validate == "new" or new is None or not len(self.memory):
            return new
        with torch.no_grad():
            right = sum(
                int((classes.predict(self.network(part.images)) == part.wanted[:, 0]).sum())
                for part in self.memory.batches(EVALUATION_BATCH)
            )
        old, fresh = len(self.classes_seen), len(task.classes)
        return (old * right / len(self.memory) + fresh * new) / (old + fresh)

    def rewire_outputs(
        self, kept: UnitSets, generator: torch.Generator, sizes: Patterns | None = None
    ) -> dict[str, Rewiring]:
        """Rewires the network; connections that a kept output loses grow into that output again.

        Each kept output is brought up to its share of the layer's connections, as far as there are
        stable units and candidates that it does not read yet. What finds no place is owed.
        """
        outputs = self._regrow_outputs(kept, generator)
        changes = self.rewire(kept, generator, sizes)
        for name, change in outputs.items():
            self.owed[name] = change.ungrown if self.config.carry_over else 0
        return changes | outputs

    def _regrow_outputs(self, kept: UnitSets, generator: torch.Generator) -> dict[str, Rewiring]:
        drops = live_between(self.topology, self.network.patterns(), complement(kept), kept)
        changes = {}
        for spec in self.topology.feeders(self.topology.output.name):
            layer, drop = self.network.layers[spec.name], drops[spec.name]
            share = (layer.live_count + self.owed[spec.name]) // layer.shape[0]
            owed = self.owed[spec.name] + int(drop.sum())
            after = layer.pattern & ~drop
            remaining = layer.values_at(after)
            absent = ~after & spec.columns_in(kept).unsqueeze(0)
            grown = [torch.zeros(0, dtype=torch.int64)]
            for row in spec.rows_in(kept).nonzero().squeeze(1).tolist():
                wanted = min(share - int(after[row].sum()), owed)
                picked = choose(absent[row], max(wanted, 0), generator)
                grown.append(row * layer.shape[1] + picked)
                owed -= len(picked)
            new = torch.cat(grown)
            values = growth_values(self.config.growth_init, remaining, len(new), generator)
            after.view(-1)[new] = True
            layer.rewire(after, new, values)
            self.owed[spec.name] = 0  # or rewire would grow them into the layer's other outputs
            none = torch.zeros(0, dtype=torch.int64)
            changes[spec.name] = Rewiring(after, none, new, int(drop.sum()), owed)
        return changes

    def kept_whole(self, network: SparseNetwork, stable: UnitSets) -> UnitSets:
        """All but outputs, which go on learning."""
        output = network.topology.output.name
        return {**stable, output: torch.zeros_like(stable[output])}

    @torch.no_grad()
    def restart(self, task: Task, seed: int | None = None) -> None:
        """Draws plastic values again, except those into outputs of seen classes."""
        output = self.topology.output.name
        heads = [self.network.layers[spec.name] for spec in self.topology.feeders(output)]
        before = [(layer.weight.clone(), layer.bias.clone()) for layer in heads]
        self.redraw_plastic(task, self.config.restart_init, seed)
        seen = self.stable[output].to(self.device)
        for layer, (weight, bias) in zip(heads, before, strict=True):
            rows = seen[layer.plastic_index // layer.shape[1]]
            layer.weight[rows] = weight[rows]
            layer.bias[seen[layer.bias_index]] = bias[seen[layer.bias_index]]
