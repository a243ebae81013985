"""What the training of a detector minimises: focal loss of the classes, DIoU loss of the segments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from moss_vllm.detection.detector import LevelOutput
from moss_vllm.detection.points import assign_targets, decode_segments, pyramid_points

EPS = 1e-7


class DetectionLosses(NamedTuple):
    """Both losses of a batch, and its number of positive points."""

    classes: Tensor
    segments: Tensor
    positives: Tensor


class DetectionLoss(nn.Module):
    """The sums over a batch's points, divided by a moving average of how many of them are positive.

    In evaluation mode they are divided by the batch's own number. `normaliser` is part of the state of a run:
    it is saved with the model. A step of several batches divides their `sums` by one `next_divisor`.

    Args:
        alpha: weight of positives in the focal loss; negatives have 1 - alpha.
        gamma: how much the focal loss spares what is already right.
        radius: see `assign_targets`.
        start: the moving average before the first step.
        momentum: share of it that a step keeps.

    Reference: ActionFormer (Zhang et al., 2022).
    """

    def __init__(
        self,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        radius: float = 1.5,
        start: float = 100.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.alpha, self.gamma, self.radius, self.momentum = alpha, gamma, radius, momentum
        self.normaliser: Tensor
        self.register_buffer("normaliser", torch.tensor(float(start)))

    def forward(
        self, levels: Sequence[LevelOutput], segments: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> DetectionLosses:
        """Losses of a batch of B windows, divided; arguments as in `sums`."""
        sums = self.sums(levels, segments, labels)
        own = sums.positives.clamp(min=1)
        divisor = self.next_divisor(sums.positives) if self.training else own
        return DetectionLosses(sums.classes / divisor, sums.segments / divisor, sums.positives)

    @torch.no_grad()
    def next_divisor(self, positives: int | Tensor) -> Tensor:
        """The moving average with one more step, of so many positive points."""
        own = torch.as_tensor(positives).clamp(min=1).to(self.normaliser)
        self.normaliser.lerp_(own, 1 - self.momentum)
        return self.normaliser.clone()

    def sums(
        self, levels: Sequence[LevelOutput], segments: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> DetectionLosses:
        """Losses of a batch of B windows, not divided.

        Shape:
            segments: for each window (N, 2), start and end of its actions in level-0 steps.
            labels: for each window (N,), class ids.

        Raises:
            ValueError: another number of windows in `segments` or `labels`, or see `assign_targets`.
        """
        logits = torch.cat([level.cls_logits for level in levels], dim=2).float().transpose(1, 2)
        distances = torch.cat([level.distances for level in levels], dim=2).float().transpose(1, 2)
        valid = torch.cat([level.mask for level in levels], dim=1)
        if not len(segments) == len(labels) == len(valid):
            raise ValueError(
                f"{len(segments)} lists of segments and {len(labels)} of labels for {len(valid)} windows; "
                "give one of each for every window, of length 0 where nothing happens"
            )
        points = pyramid_points([level.mask.shape[1] for level in levels], device=valid.device)
        settings: dict[str, Any] = {"classes": logits.shape[2], "radius": self.radius}
        targets = [assign_targets(points, *one, **settings) for one in zip(segments, labels, strict=True)]
        target_classes = torch.stack([target.classes for target in targets])
        target_distances = torch.stack([target.distances for target in targets])
        positive = valid & target_classes.any(dim=2)

        class_sum = sigmoid_focal_loss(
            logits[valid], target_classes[valid], alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        predicted, expected = (decode_segments(points, each) for each in (distances, target_distances))
        segment_sum = diou_loss(predicted[positive], expected[positive]).sum()
        return DetectionLosses(class_sum, segment_sum, positive.sum())


def diou_loss(predicted: Tensor, expected: Tensor) -> Tensor:
    """1 - distance-IoU of segments: IoU less the squared distance of the centres over that of the ends.

    Shape:
        (N, 2) and (N, 2), start and end -> (N,).

    Reference: Zheng et al., 2020, in one dimension.
    """
    (start, end), (other_start, other_end) = predicted.unbind(-1), expected.unbind(-1)
    overlap = (torch.minimum(end, other_end) - torch.maximum(start, other_start)).clamp(min=0)
    union = (end - start) + (other_end - other_start) - overlap
    hull = torch.maximum(end, other_end) - torch.minimum(start, other_start)
    between = ((start + end) - (other_start + other_end)) / 2
    return 1 - overlap / union.clamp(min=EPS) + between.square() / hull.square().clamp(min=EPS)
