"""iCaRL: features learned by rehearsal and distillation, classes told by their nearest mean.

Rebuffi et al. 2017, arXiv 1611.07725. Each output is a classifier of its own, the sigmoid
s_c(x) of class c. Before a task is learned, the outputs q_i,c of the network as it is are stored
for old classes c and all samples i, those of the new task and the exemplars of old ones. On their
union the loss is the mean binary cross-entropy of all classes seen,

    - mean_i,c [ t_i,c log s_c(x_i) + (1 - t_i,c) log(1 - s_c(x_i)) ],

    t_i,c = q_i,c for an old class c (distillation),  1 or 0 for a new one, by the label.

Then the exemplars of old classes are cut to their new share of the memory, and those of the new
ones are chosen by herding, so that their mean is near that of the class. A sample is of the class
whose mean of exemplars is nearest to its features: the activations that the output layer reads, at
length 1, as are the means.

Differences from the paper: its loss is a sum over classes, where its published code has the mean,
as here. Differences from that code: its mean goes over all classes, those to come included with
target 0, and it adds mirrored images to exemplars' means; here images are not augmented. Herding
takes no sample twice. The size of the memory is shared to the last sample: the first classes may
have one exemplar more.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nispa.data.tasks import JoinedSamples, Samples, Task, TaskInfo
from nispa.errors import NotLearnedError
from nispa.methods.base import Incremental, Learning, MethodState
from nispa.methods.replay import MemoryConfig, Replay
from nispa.network.models import DataSet
from nispa.training.fit import EVALUATION_BATCH, Batch, Step, batch_update


class ICarl(Replay):
    """A network for features and a mean of exemplars for each class."""

    name = "icarl"
    config_class = MemoryConfig
    incremental: ClassVar[tuple[Incremental, ...]] = ("class",)
    shares_classes = False
    config: MemoryConfig

    def start(self) -> None:
        """A fresh network and no exemplars."""
        super().start()
        self._means: Tensor | None = None

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and the exemplars, then chooses exemplars anew."""
        self._means = None
        new = task.train.to(self.device)
        train = self.prepare(self.network, JoinedSamples((self.exemplars(), new)))
        report = yield from self.train_by(self.step(task, train), task, train)
        features = [self.features(images) for images, _ in new.batches(EVALUATION_BATCH)]
        self.memory.herd(new, torch.cat(features), task.index)
        return report

    def exemplars(self) -> Samples:
        """What the memory holds."""
        everything = self.memory.take(self.memory.select())
        return Samples(everything.images, everything.wanted[:, 0])

    def step(self, task: Task, train: DataSet) -> Step:
        """An update by the loss of all classes seen."""
        optimiser = self.fresh_optimiser()
        classes = self.competing(task).classes
        targets = self.targets(classes, train)
        update = batch_update(
            self.network,
            lambda logits, wanted: functional.binary_cross_entropy_with_logits(
                logits[:, classes], wanted
            ),
            optimiser,
        )

        def step(batch: Batch) -> Tensor:
            return update(batch.images, targets[batch.index])

        return step

    @torch.no_grad()
    def targets(self, classes: Tensor, train: DataSet) -> Tensor:
        """What the outputs of ``classes`` should be for all samples, ``(samples, classes)``."""
        targets = (train.labels.unsqueeze(1) == classes).to(torch.float32)
        old = torch.isin(classes, torch.tensor(self.classes_seen, device=self.device))
        if old.any():
            self.network.eval()
            outputs = [
                self.network(images)[:, classes[old]].sigmoid()
                for images, _ in train.batches(EVALUATION_BATCH)
            ]
            targets[:, old] = torch.cat(outputs)
        return targets

    def features(self, images: Tensor) -> Tensor:
        """What the output layer reads, at length 1: ``(batch, features)``."""
        self.network.eval()
        last = self.network.topology.hidden[-1].name
        read = self.network.observe(images, lambda active: active.flatten(1))[last]
        return functional.normalize(read, dim=1)

    def means(self) -> Tensor:
        """Mean of each class's exemplars at length 1, ``(outputs, features)``; else zero."""
        if self._means is None:
            sums = torch.zeros(0)
            for part in self.memory.batches(EVALUATION_BATCH):
                features = self.features(part.images)
                if not len(sums):
                    sums = features.new_zeros(self.problem.outputs, features.shape[1])
                sums.index_add_(0, part.wanted[:, 0], features)
            self._means = functional.normalize(sums, dim=1)
        return self._means

    @torch.no_grad()
    def predict(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Classes of images; see :class:`Method`."""
        among = self._among(task)
        # Among vectors of length 1, the nearest has the largest inner product.
        return among[(self.features(images) @ self.means()[among].T).argmax(dim=1)]

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Squared distances to the means of classes, negative; see :class:`Method`.

        Both have length 1, so no distance exceeds 2: the soft-max tells little between classes.
        """
        return 2 * self.features(images) @ self.means()[self._among(task)].T - 2

    def _among(self, task: TaskInfo | None) -> Tensor:
        """The classes that a prediction may name, if there are exemplars of each."""
        classes = self.choices(task)
        without = sorted(set(classes) - set(self.memory.labels.tolist()))
        if without:
            raise NotLearnedError(f"there are no exemplars of classes {without}; learn them first")
        return torch.tensor(classes, device=self.device)

    def load_state(self, state: MethodState) -> None:
        """Takes over a state; see :class:`Method`."""
        super().load_state(state)
        self._means = None
