"""iCaRL: features learned by rehearsal and distillation, classes predicted by the nearest mean.

Rebuffi et al. 2017, arXiv 1611.07725. Each output is a classifier of its own, the sigmoid
s_c(x) of class c. Before a task is learned (Algorithm 3), the network's outputs q_i,c are stored
for old classes c and all samples i: those of the new task and the exemplars of old ones. On their
union the loss is the mean binary cross-entropy of all classes seen,

    - mean_i,c [ t_i,c log s_c(x_i) + (1 - t_i,c) log(1 - s_c(x_i)) ],

    t_i,c = q_i,c for an old class c (distillation),  1 or 0 for a new one, by the label.

Then the exemplars of old classes are cut to their new share of the memory (Algorithm 5), and those
of the new classes are chosen by herding, so that their mean is near that of the class (Algorithm
4). A prediction is the class whose mean of exemplars is nearest to the sample's features
(Algorithm 1). Features are the activations that the output layer reads; they and the means are
normalised to length 1.

Differences from the paper: its loss is a sum over classes; its published code takes the mean, as
here. Differences from that code: its mean is over all classes, later ones included with target 0,
and it adds mirrored images to exemplars' means; here they are of the images as they are, and so are
the targets of distillation, even if ``augment`` varies what is learned. Herding takes no sample
twice. The memory is shared to the last sample: the first classes may have one exemplar more.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from nispa.data.tasks import JoinedSamples, Samples, Task, TaskInfo
from nispa.errors import NotLearnedError
from nispa.methods.base import Incremental, Learning
from nispa.methods.parts import Derived, Network, SampleMemory
from nispa.methods.replay import MemoryConfig, Replay
from nispa.network.models import DataSet
from nispa.network.reads import head_reads
from nispa.training.fit import EVALUATION_BATCH, Batch, Step, batch_update


class ICarl(Replay):
    """A network for features and a mean of exemplars for each class."""

    name = "icarl"
    published = "Rebuffi et al., CVPR 2017"
    config_class = MemoryConfig
    carries = (Network(), SampleMemory(), Derived("_means"))
    incremental: ClassVar[tuple[Incremental, ...]] = ("class",)
    shares_classes = False
    config: MemoryConfig
    _means: Tensor | None

    def learn_task(self, task: Task) -> Learning:
        """Trains on the task and the exemplars, then chooses exemplars of the task's classes."""
        self._means = None  # of the network before
        new = task.train.to(self.device)
        train = self.prepare(self.network, JoinedSamples((self.exemplars(), new)))
        report = yield from self.rehearse_by(self.step(task, train), task, train)
        features = [self.features(images) for images, _ in new.batches(EVALUATION_BATCH)]
        self.memory.herd(new, torch.cat(features), task.index)
        return report

    def exemplars(self) -> Samples:
        """The samples in memory."""
        remembered = self.memory.take(self.memory.select())
        return Samples(remembered.images, remembered.wanted[:, 0])

    def step(self, task: Task, train: DataSet) -> Step:
        """An update by the loss of all classes seen."""
        optimiser = self.fresh_optimiser()
        classes = self.competing(task).classes
        # Before any update: old classes are distilled from the network as it is now.
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
        """The targets t_i,c of all samples, ``(samples, classes)``."""
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
        """What the output layer reads, normalised: ``(batch, features)``."""
        return functional.normalize(head_reads(self.network, images), dim=1)

    def means(self) -> Tensor:
        """Normalised mean of each class's exemplars, ``(outputs, features)``; 0 without any."""
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
        """The classes with the nearest means."""
        among = self._among(task)
        # |x - m|^2 = 2 - 2 x . m for vectors of length 1: the nearest has the largest product.
        return among[(self.features(images) @ self.means()[among].T).argmax(dim=1)]

    @torch.no_grad()
    def scores(self, images: Tensor, task: TaskInfo | None) -> Tensor:
        """Negative squared distances to the means of classes.

        They lie in [-4, 0], so the soft-max over them is nearly flat.
        """
        return 2 * self.features(images) @ self.means()[self._among(task)].T - 2

    def _among(self, task: TaskInfo | None) -> Tensor:
        """The classes that a prediction may name.

        Raises:
            NotLearnedError: One of them has no exemplars.
        """
        classes = self.choices(task)
        without = sorted(set(classes) - set(self.memory.labels.tolist()))
        if without:
            raise NotLearnedError(f"there are no exemplars of classes {without}; learn them first")
        return torch.tensor(classes, device=self.device)
