"""The loss of a task: a weighted sum of terms, averaged over the stacks of the network."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..ops.losses import clamped_sigmoid, focal_loss
from ..options.table import Options


class Criterion(nn.Module, ABC):
    """Weighted sum of loss terms (equation 4 of the paper).

    Terms are divided by the numbers of ``normalizers``. A batch may be a part of a larger one: the share of a process,
    or a micro-batch of ``--accumulate``. With the normalizers of the whole batch the losses of the parts add up to the
    loss of the whole, and so do their gradients. The inputs are left unchanged.

    Attributes:
        names: ``loss`` and its terms in the order of the logs.
        weights: term to the option with its weight, in the order of summation.
        mse_of_scores: whether ``--mse_loss`` compares scores; otherwise raw maps, as in the reference's ctdet.
    """

    names: ClassVar[tuple[str, ...]]
    weights: ClassVar[dict[str, str]]
    mse_of_scores: ClassVar[bool] = False

    def __init__(self, opt: Options) -> None:
        super().__init__()
        self.opt = opt

    @abstractmethod
    def counts(self, batch: dict) -> list[Tensor]:
        """Return the numbers of peaks, objects, ... of a batch by which the terms are divided."""

    @abstractmethod
    def stack_losses(self, output: dict[str, Tensor], batch: dict, counts: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms of one stack by name; terms that are switched off may be missing."""

    def with_oracle(self, output: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        """Replace the heads named by ``--eval_oracle_*`` with ground truth, for error analysis."""
        return output

    def normalizers(self, batch: dict) -> Tensor:
        """Return ``counts`` as one float32 tensor, to be summed over the parts of a batch."""
        return torch.stack([count.to(torch.float32) for count in self.counts(batch)])

    def forward(
        self, outputs: list[dict[str, Tensor]], batch: dict, normalizers: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and ``loss`` and its unweighted terms by name.

        Args:
            outputs: raw maps of the network, one dict per stack.
            batch: targets of ``Task.encode`` and ``Task.draw_targets``.
            normalizers: those of the larger batch that this one is a part of; None: those of this batch.
        """
        some_map = next(iter(outputs[0].values()))
        counts = (self.normalizers(batch) if normalizers is None else normalizers).to(some_map.dtype)
        stacks = [self.stack_losses(self.with_oracle(output, batch), batch, counts) for output in outputs]
        zero = some_map.new_zeros(())
        terms = {name: sum((stack.get(name, zero) for stack in stacks), zero) / len(stacks) for name in self.names[1:]}
        loss = sum((getattr(self.opt, weight) * terms[name] for name, weight in self.weights.items()), zero)
        return loss, {"loss": loss, **terms}

    def heatmap_loss(self, logits: Tensor, target: Tensor, count: Tensor) -> Tensor:
        """Return the focal loss of a heatmap (B, C, H, W), or with ``--mse_loss`` its mean squared error."""
        if not self.opt.mse_loss:
            return focal_loss(logits, target, count)
        return (((clamped_sigmoid(logits) if self.mse_of_scores else logits) - target) ** 2).sum() / count

    def heatmap_count(self, target: Tensor) -> Tensor:
        """Return the number by which ``heatmap_loss`` is divided: peaks, or pixels with ``--mse_loss``."""
        return target.new_full((), target.numel()) if self.opt.mse_loss else target.eq(1).sum()
