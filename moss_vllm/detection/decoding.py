"""From the detector's outputs to the actions of a video.

a window's outputs -> its best (point, class) pairs, in seconds, rounded -> those of all windows of a video
-> soft-NMS per class -> the best, rounded: what a prediction file has.

Scores are rounded before soft-NMS, as AdaTAD's are: they then have many ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.predictions import Detections, join_detections
from moss_vllm.detection.soft_nms import soft_nms

# One level of the pyramid: class logits (B, classes, T), distances (B, 2, T) in strides, mask (B, T).
Level = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DecodeSettings:
    """How many detections are kept; the names are OpenTAD's, the defaults AdaTAD's on THUMOS-14.

    Args:
        pre_nms_thresh: a (point, class) pair of a window needs a higher score.
        pre_nms_topk: pairs of a window.
        sigma, min_score, max_seg_num: of a video, see `soft_nms`.
    """

    pre_nms_thresh: float = 0.001
    pre_nms_topk: int = 2000
    sigma: float = 0.7
    min_score: float = 0.0
    max_seg_num: int = 2000


def decode_windows(
    levels: Sequence[Level],
    points: Tensor,
    places: Sequence[tuple[DetectionVideo, int]],
    settings: DecodeSettings,
    *,
    stride: int = 4,
) -> list[Detections]:
    """The best detections of each window of a batch by falling score, in seconds of its video, not rounded.

    Args:
        levels: what the detector returns.
        points: (P, 4) of all levels joined: time, two ends of a range, stride, in steps.
        places: the video of each window, and the window's first frame.
        stride: frames from one step to the next.

    Raises: ValueError for levels, points and places of different sizes, or outputs that are NaN.
    """
    lengths = [mask.shape[1] for _, _, mask in levels]
    if sum(lengths) != len(points) or any(len(level[0]) != len(places) for level in levels):
        sizes = ", ".join(str(tuple(logits.shape)) for logits, _, _ in levels)
        raise ValueError(
            f"{len(places)} windows and {len(points)} points do not fit levels of {sizes}; the first size of "
            "each is the number of windows, the last ones add up to the points"
        )
    return [
        _decode_window(*point_segments(levels, points, index), video, start_frame, settings, stride)
        for index, (video, start_frame) in enumerate(places)
    ]


def point_segments(levels: Sequence[Level], points: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """What each real point of one window predicts.

    Shape: segments (N, 2), in steps from the window's start; scores (N, classes). In float32.
    """
    mask = torch.cat([mask[index] for _, _, mask in levels])
    logits = torch.cat([logits[index].float() for logits, _, _ in levels], dim=1).T[mask]
    distances = torch.cat([distances[index].float() for _, distances, _ in levels], dim=1).T[mask]
    time, stride = points.to(distances)[mask][:, 0], points.to(distances)[mask][:, 3]
    segments = torch.stack([time - distances[:, 0] * stride, time + distances[:, 1] * stride], dim=1)
    return segments, logits.sigmoid()


def _decode_window(
    segments: Tensor,
    scores: Tensor,
    video: DetectionVideo,
    start_frame: int,
    settings: DecodeSettings,
    stride: int,
) -> Detections:
    if not (segments.isfinite().all() and scores.isfinite().all()):
        raise ValueError(
            f"{video.video_id}, window at frame {start_frame:,}: the detector's outputs are NaN or infinite; "
            "check the checkpoint, or test in bf16 or fp32"
        )
    flat = scores.flatten()
    pairs = torch.nonzero(flat > settings.pre_nms_thresh).squeeze(1)
    pairs = pairs[flat[pairs].argsort(descending=True, stable=True)[: settings.pre_nms_topk]]
    times_s = (segments[pairs // scores.shape[1]] * stride + start_frame) / video.fps
    times_s = times_s.clamp(min=0.0, max=video.duration_s)
    columns = (times_s.double(), flat[pairs].double(), pairs % scores.shape[1])
    return Detections(*(column.cpu().numpy() for column in columns))


def merge_windows(windows: Sequence[Detections], settings: DecodeSettings) -> Detections:
    """The detections of a video from those of all its windows, by falling score and rounded."""
    joined = join_detections([window.rounded() for window in windows])
    kept = soft_nms(
        joined, sigma=settings.sigma, min_score=settings.min_score, max_seg_num=settings.max_seg_num
    )
    return kept.rounded()
