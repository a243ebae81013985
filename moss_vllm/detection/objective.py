"""What the training of a detector minimises, and the average of its weights, step by step."""

import torch
from torch import Tensor

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.batches import NO_ACTION
from moss_vllm.training.average import WeightAverage
from moss_vllm.training.loop import Objective


class DetectionObjective(Objective):
    """Sum of both losses over the points of windows.

    A step divides it by the moving average of its positive points, over all processes and micro-batches; then
    the average of the weights takes the new ones in.

    Args:
        average: of the model's `trained_state`.
    """

    model: AdaTAD

    def __init__(
        self, model: AdaTAD, average: WeightAverage | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(model, dtype)
        self.average = average

    def divisor(self, terms: int) -> float:
        """The loss's divisor of a step with so many positive points."""
        return float(self.model.loss.next_divisor(terms))

    def after_step(self) -> None:
        """Take the weights into their average."""
        if self.average:
            self.average.update()

    def forward(self, clips: Tensor, mask: Tensor, segments: Tensor, labels: Tensor) -> Tensor:
        """Loss of one micro-batch from `DetectionTrainingSet.collate`."""
        if not bool(mask.any()):
            return self._run_in_vain(clips, mask)
        with self.autocast(clips.device):
            levels = self.model(clips, mask)
        real = labels != NO_ACTION
        actions = ([values[row] for values, row in zip(one, real, strict=True)] for one in (segments, labels))
        sums = self.model.loss.sums(levels, *actions)
        return sums.classes + sums.segments

    def _run_in_vain(self, clips: Tensor, mask: Tensor) -> Tensor:
        """A loss of 0 that reaches every weight.

        This process could read no video. It runs the model, because the other processes wait for its
        gradients. Temporal modules run in evaluation mode, so that BatchNorm's statistics stay as they are;
        all else does not, as backward computes it again in the mode that it then has.
        """
        temporal = [self.model.get_submodule(name) for name in self.model.temporal_names.values()]
        for module in temporal:
            module.eval()
        with self.autocast(clips.device):
            levels = self.model(clips, torch.ones_like(mask))
        for module in temporal:
            module.train()
        outputs = [output.float().sum() for level in levels for output in (level.cls_logits, level.distances)]
        return 0.0 * torch.stack(outputs).sum()
