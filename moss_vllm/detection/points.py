"""The points of the temporal pyramid, and which action each of them should find."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Between the lengths of actions in level-0 steps that lie this near, a point learns the classes of both.
EQUAL_LENGTHS = 1e-3
FARTHEST = 10_000.0  # upper end of the last level's range


class Targets(NamedTuple):
    """What points should predict: `classes` (P, classes), 0 or 1; `distances` (P, 2) in strides.

    A point whose `classes` are all 0 is background, and its distances mean nothing.
    """

    classes: Tensor
    distances: Tensor


def regression_ranges(levels: int) -> list[tuple[float, float]]:
    """The distances, in level-0 steps, that each level is for: 0-4, 4-8, 8-16, ..., the last without end."""
    edges = [0.0, *(4.0 * 2**level for level in range(levels - 1)), FARTHEST]
    return list(zip(edges[:-1], edges[1:], strict=True))


def pyramid_points(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The points of all levels, joined.

    Shape:
        the number of steps of each level -> (P, 4): time, lower and upper end of the level's range, stride,
        all in level-0 steps. A point lies on the first step of its stride.
    """
    points = []
    for level, (length, (low, high)) in enumerate(zip(lengths, regression_ranges(len(lengths)), strict=True)):
        stride = 2.0**level
        times = stride * torch.arange(length, dtype=torch.float32, device=device)
        rows = [times, *(torch.full_like(times, value) for value in (low, high, stride))]
        points.append(torch.stack(rows, dim=1))
    return torch.cat(points)


def assign_targets(
    points: Tensor, segments: Tensor, labels: Tensor, *, classes: int, radius: float = 1.5
) -> Targets:
    """The action of each point of one window.

    A point is for an action if it lies within `radius` strides of its centre and inside it, and the farther
    end is in the range of the point's level. Of several actions the shortest counts, the first of equals;
    their labels all count where the lengths are equal (THUMOS annotates every CliffDiving as Diving too).

    Args:
        points: (P, 4) from `pyramid_points`.
        segments: (N, 2), start and end of each action in level-0 steps.
        labels: (N,) whole numbers below `classes`.
        classes: number of classes.
        radius: in strides of the point's level.

    Raises:
        ValueError: segments and labels that do not fit each other, or a label outside the classes.
    """
    _check(segments, labels, classes)
    if not len(segments):
        return Targets(points.new_zeros(len(points), classes), points.new_zeros(len(points), 2))
    time, low, high, stride = (column[:, None] for column in points.unbind(1))
    start, end = segments.to(points).unbind(1)
    centre = (start + end) / 2
    left, right = time - start, end - time  # (P, N)
    after = time > torch.maximum(centre - radius * stride, start)
    before = time < torch.minimum(centre + radius * stride, end)
    farther = torch.maximum(left, right)
    matches = after & before & (farther >= low) & (farther <= high)
    lengths = (end - start).expand_as(matches).masked_fill(~matches, torch.inf)
    shortest = lengths.argmin(dim=1, keepdim=True)  # the first of equals
    counts = matches & (lengths <= lengths.gather(1, shortest) + EQUAL_LENGTHS)
    one_hot = F.one_hot(labels.to(points.device, torch.long), classes).to(points)
    distances = torch.stack([part.gather(1, shortest).squeeze(1) for part in (left, right)], dim=1)
    return Targets((counts.to(points) @ one_hot).clamp(max=1), distances / stride)


def count_positives(
    mask: Tensor, segments: Tensor, labels: Tensor, *, classes: int, levels: int, radius: float = 1.5
) -> int:
    """How many real points of one window are for an action; no prediction is needed to know it.

    Args:
        mask: (T,), True on real steps.
        levels: of the pyramid.
        segments, labels, classes, radius: as in `assign_targets`.
    """
    masks = [mask[:: 2**level] for level in range(levels)]
    points = pyramid_points([len(one) for one in masks])
    targets = assign_targets(points, segments, labels, classes=classes, radius=radius)
    return int((torch.cat(masks) & targets.classes.any(dim=1)).sum())


def decode_segments(points: Tensor, distances: Tensor) -> Tensor:
    """Start and end, in level-0 steps, from distances in strides.

    Shape:
        points (P, 4), distances (..., P, 2) -> (..., P, 2).
    """
    time, stride = points[:, 0], points[:, 3]
    return torch.stack([time - distances[..., 0] * stride, time + distances[..., 1] * stride], dim=-1)


def _check(segments: Tensor, labels: Tensor, classes: int) -> None:
    if segments.dim() != 2 or segments.shape[1] != 2 or labels.shape != segments.shape[:1]:
        raise ValueError(
            f"segments of shape {tuple(segments.shape)} and labels of shape {tuple(labels.shape)}; give "
            "(N, 2) and (N,), for a window without actions (0, 2) and (0,)"
        )
    if len(labels) and (wrong := labels[(labels < 0) | (labels >= classes)]).numel():
        raise ValueError(
            f"labels {sorted(set(wrong.tolist()))} are outside the detector's {classes} classes, 0 to "
            f"{classes - 1}; check the class list"
        )
