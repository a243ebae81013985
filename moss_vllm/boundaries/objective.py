"""What the training of a boundary model minimises, micro-batch by micro-batch."""

from typing import cast

from torch import Tensor, nn

from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.boundaries.loss import boundary_losses
from moss_vllm.training.loop import Objective


class BoundaryObjective(Objective):
    """Sum of the cross-entropy over the frames that count; a step divides it by their number."""

    model: GEBD

    def forward(self, clips: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Loss of one micro-batch from `BoundaryTrainingSet.collate`."""
        if not bool(mask.any()):
            return self._run_in_vain(clips)
        with self.autocast(clips.device):
            logits = self.model(clips)
        return boundary_losses(logits, labels, mask).sum()

    def _run_in_vain(self, clips: Tensor) -> Tensor:
        """A loss of 0 that reaches every weight.

        This process could read no clip. It runs the model, because the other processes wait for its
        gradients, in evaluation mode, so that BatchNorm's statistics stay as they are. The ResNet, which
        backward computes again, is the same in both modes.
        """
        self.model.eval()
        with self.autocast(clips.device):
            logits = cast(Tensor, self.model(clips))
        cast(nn.Module, self.model).train()
        return 0.0 * logits.float().sum()
