"""The loss of a classification among some of the outputs, and predictions among them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class CrossEntropy:
    """Mean cross-entropy among some of the outputs, with its gradient in closed form.

    With p the soft-max of a sample's n logits and y its class, dL/dlogits = (p - onehot(y)) / n.

    Attributes:
        outputs: The outputs whose logits it reads.
    """

    def __init__(self, classes: Tensor, mask: Tensor, how: str) -> None:
        """A loss.

        Args:
            classes: The outputs that compete, ``(classes,)`` int64.
            mask: 1 for these outputs, else 0, ``(outputs,)``.
            how: ``"slice"`` or ``"zero"``; see :class:`ClassMask`.
        """
        self._how, self._classes, self._mask = how, classes, mask
        self.outputs = tuple(classes.tolist())
        self._place = torch.full_like(mask, -1, dtype=torch.int64)  # of a class among them
        self._place[classes] = torch.arange(len(classes), device=mask.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over ``(batch, outputs)`` logits and ``(batch,)`` classes."""
        return functional.cross_entropy(*self._competing(logits, labels))

    @torch.no_grad()
    def value_and_gradient(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same bits as from autograd, without its graph: a scalar, ``(batch, outputs)``."""
        chosen, places = self._competing(logits, labels)
        logs = torch.log_softmax(chosen, 1)
        value = functional.nll_loss(logs, places)
        slope = torch.zeros_like(logs).scatter_(1, places.unsqueeze(1), -1 / len(labels))
        gradient = torch._log_softmax_backward_data(slope, logs, 1, logs.dtype)
        if self._how == "zero":
            return value, gradient * self._mask
        return value, torch.zeros_like(logits).index_copy_(1, self._classes, gradient)

    def _competing(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._how == "zero":
            return logits * self._mask, labels
        chosen = logits.index_select(1, self._classes)  # its gradient is faster than indexing's
        return chosen, self._place[labels]


class ClassMask:
    """Restricts logits to the classes of one task.

    ``slice`` takes the logits of those classes alone. ``zero`` (published) multiplies the others by
    0: they stay in the soft-max as e^0 and can win the arg-max when all the task's are negative.

    Attributes:
        loss: Mean cross-entropy of ``(batch, outputs)`` logits against ``(batch,)`` classes.
    """

    def __init__(
        self, classes: tuple[int, ...], outputs: int, how: str, device: torch.device
    ) -> None:
        self.how = how
        self.classes = torch.tensor(classes, device=device)
        self.mask = torch.zeros(outputs, device=device)
        self.mask[self.classes] = 1.0
        self.loss = CrossEntropy(self.classes, self.mask, how)

    def predict(self, logits: Tensor) -> Tensor:
        """The class with the highest logit, ``(batch,)`` int64."""
        if self.how == "zero":
            return (logits * self.mask).argmax(dim=1)
        return self.classes[logits[:, self.classes].argmax(dim=1)]
