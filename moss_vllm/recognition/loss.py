"""What the training of a classifier minimises."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moss_vllm.recognition.batches import NO_LABEL
from moss_vllm.training.loop import Objective


class ClassLoss(Objective):
    """Sum of the cross entropy over clips, with smoothed labels (Table 7)."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, *, smoothing: float = 0.1) -> None:
        super().__init__(model, dtype)
        self.smoothing = smoothing

    def forward(self, video: Tensor, labels: Tensor) -> Tensor:
        """Loss of one micro-batch from `ActionTrainingSet.collate`."""
        with self.autocast(labels.device):
            logits = self._score(video, labels)
        return F.cross_entropy(
            logits.float(), labels, reduction="sum", label_smoothing=self.smoothing, ignore_index=NO_LABEL
        )

    def _score(self, video: Tensor, labels: Tensor) -> Tensor:
        if bool((labels != NO_LABEL).any()):
            return cast(Tensor, self.model(video))
        # This process could read no clip. It runs the model, because the other processes wait for its
        # gradients; in evaluation mode, so that BatchNorm's statistics stay as they are.
        self.model.eval()
        logits = cast(Tensor, self.model(video))
        self.model.train()
        return logits
