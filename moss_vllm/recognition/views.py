"""Clips of a classifier: which frames, which part of the picture, how changed; for training and for tests.

`PROTOCOLS[dataset]["paper"]` is Table 7; "authors" is what their configuration files say where the two
differ (Kinetics: sampling and repeats; grey on all but Something-Something). `protocol_views` adds what
depends on the variant.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.augment import ClipRandAugment, draw_box, grey
from moss_vllm.recognition.frame_choice import SAMPLINGS, draw_indices, spread_indices
from moss_vllm.training.row_order import PlacedRow
from moss_vllm.video.clip import read_frames
from moss_vllm.video.frames import BadVideo, scaled_size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NO_LABEL = -100  # what torch's cross entropy ignores
Scale = int | tuple[int, int]
Example = tuple[str, Tensor, Tensor]


@dataclass(frozen=True)
class ViewSettings:
    """How a clip is sampled, changed and cut.

    Args:
        frames: T, frames of a clip.
        sampling: one of `sampling.SAMPLINGS`.
        stride: frames from one to the next; dense sampling only.
        size_px: side of the square that the model sees.
        train_scale, test_scale: shorter side before cropping, or (height, width).
        clips, crops: a test shows clips x crops views; crops is 1 (centre) or 3 (left, right, centre).
        randaugment: timm's notation, or None.
        min_area: the least part of the picture that a random box takes; 1 takes all of it.
        flip, grayscale: probabilities, of a whole clip.
        repeats: training views of one clip, all of the same frames.
        mean, std: of the image encoder, by channel, for values from 0 to 1.
    """

    frames: int = 8
    sampling: str = "uniform"
    stride: int = 8
    size_px: int = 224
    train_scale: Scale = 256
    test_scale: Scale = 224
    clips: int = 2
    crops: int = 3
    randaugment: str | None = None
    min_area: float = 0.08
    flip: float = 0.5
    grayscale: float = 0.0
    repeats: int = 1
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "size_px", "clips", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops is {self.crops}; it must be 1 (centre) or 3 (left, right, centre)")
        for name in ("train_scale", "test_scale"):
            scale = getattr(self, name)
            if min(scale if isinstance(scale, tuple) else (scale,)) < self.size_px:
                raise ValueError(f"{name} is {scale}, below size_px, which is {self.size_px}; raise it")
        for name in ("flip", "grayscale", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")

    def at_size(self, size_px: int) -> "ViewSettings":
        """The same views in another resolution: both scales change with it."""

        def scaled(scale: Scale) -> Scale:
            sides = [round(side * size_px / self.size_px) for side in np.atleast_1d(scale).tolist()]
            return (sides[0], sides[1]) if isinstance(scale, tuple) else sides[0]

        return dataclasses.replace(
            self, size_px=size_px, train_scale=scaled(self.train_scale), test_scale=scaled(self.test_scale)
        )


_SSV = ViewSettings(
    train_scale=(256, 320), test_scale=(256, 320), randaugment="rand-m7-n4-mstd0.5-inc1", repeats=2
)
# Dense at 32 frames reaches over 256 with Table 7's stride of 8; the authors' dense branch over 128 whatever
# the number of frames, which is a stride of 4 then.
_K400 = ViewSettings(frames=16, sampling="dense", clips=4, grayscale=0.2, repeats=2)
_DIVING48 = ViewSettings(frames=32)
_FINEGYM = ViewSettings(frames=32, test_scale=256)
_PAPER = {
    "ssv1": _SSV,
    "ssv2": _SSV,
    "k400": _K400,
    "diving48": _DIVING48,
    "gym99": _FINEGYM,
    "gym288": _FINEGYM,
    "list": ViewSettings(),  # videos of one's own: nothing that hides what colour or direction may mean
    # What the miniature learns is where things go, and how fast: the whole picture, as it is.
    "mini": ViewSettings(size_px=84, train_scale=84, test_scale=84, clips=1, crops=1, min_area=1.0, flip=0.0),
}
_AUTHORS = {
    "k400": dataclasses.replace(_K400, sampling="uniform-k400", repeats=1),
    "diving48": dataclasses.replace(_DIVING48, grayscale=0.2),
    "gym99": dataclasses.replace(_FINEGYM, grayscale=0.2),
    "gym288": dataclasses.replace(_FINEGYM, grayscale=0.2),
}
PROTOCOLS: dict[str, dict[str, ViewSettings]] = {
    dataset: {"paper": settings, "authors": _AUTHORS.get(dataset, settings)}
    for dataset, settings in _PAPER.items()
}
# Table 2 has 32 frames for B and 16 for L, the authors' configuration files 16 for both and 2 repeats for L.
# S and M are not in the paper, and are as the variant beside the same image encoder.
_BY_VARIANT: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("k400", "paper"): {"s": {"frames": 32}, "b": {"frames": 32}},
    ("k400", "authors"): {"m": {"repeats": 2}, "l": {"repeats": 2}},
}


def protocol_views(data: str, protocol: str, variant: str) -> ViewSettings:
    """What a protocol says of a dataset and a variant of the ladder.

    Raises:
        ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS[data]:
        raise ValueError(f"protocol is {protocol!r}; it must be one of {', '.join(PROTOCOLS[data])}")
    changes = _BY_VARIANT.get((data, protocol), {}).get(variant, {})
    return dataclasses.replace(PROTOCOLS[data][protocol], **changes)


def training_views(
    frames: np.ndarray,
    settings: ViewSettings,
    rng: np.random.Generator,
    augment: ClipRandAugment | None = None,
) -> tuple[Tensor, np.ndarray]:
    """R random views of the same frames, and which of them are mirrored.

    RandAugment, scaling, a random box resized to the square, grey, mirroring; each alike for all frames.

    Shape: uint8 (T, H, W, 3) -> float32 (R, T, 3, S, S); bool (R,).
    """
    size = settings.size_px
    views = torch.empty(settings.repeats, len(frames), 3, size, size)
    flipped = np.zeros(settings.repeats, bool)
    images = [Image.fromarray(frame) for frame in frames]
    scaled = scaled_size(frames.shape[1], frames.shape[2], settings.train_scale)
    for repeat in range(settings.repeats):
        changed = images if augment is None else augment(images, rng)
        box = draw_box(*scaled, rng, settings.min_area)
        cut = torch.from_numpy(_cut(changed, scaled, box)).permute(0, 3, 1, 2)
        if box[2:] != (size, size):
            cut = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)
        if rng.random() < settings.grayscale:
            cut = grey(cut)
        flipped[repeat] = rng.random() < settings.flip
        views[repeat] = cut.flip(-1) if flipped[repeat] else cut
    return _normalised(views, settings), flipped


def _cut(images: list[Image.Image], scaled: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A box (top, left, height, width) of the images once scaled; the rest of them is never computed.

    Shape: uint8 (T, height, width, 3).
    """
    top, left, height, width = box
    clip = np.empty((len(images), height, width, 3), np.uint8)
    down, right = images[0].height / scaled[0], images[0].width / scaled[1]
    edges = (left * right, top * down, (left + width) * right, (top + height) * down)
    for i, image in enumerate(images):
        if (image.height, image.width) == scaled:
            part = image.crop((left, top, left + width, top + height))
        else:
            part = image.resize((width, height), Image.Resampling.BICUBIC, box=edges)
        clip[i] = np.asarray(part)
    return clip


def evaluation_views(frames: np.ndarray, settings: ViewSettings) -> Tensor:
    """Every crop of every clip, clip after clip; frames are scaled and of all clips, one after the other.

    Three crops lie along the longer side: left (or top), right (or bottom), centre.

    Shape: uint8 (clips * T, H, W, 3) -> float32 (clips * crops, T, 3, S, S).
    """
    size = settings.size_px
    pixels = torch.from_numpy(frames).unflatten(0, (settings.clips, -1)).permute(0, 1, 4, 2, 3)
    height, width = frames.shape[1:3]
    views = torch.empty(settings.clips, settings.crops, pixels.shape[1], 3, size, size)
    for crop, (top, left) in enumerate(_crop_corners(height, width, size, settings.crops)):
        views[:, crop] = pixels[..., top : top + size, left : left + size]
    return _normalised(views.flatten(0, 1), settings)


def _crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Top and left of each crop, in quarters of the room there is, as the authors' code rounds it."""
    if crops == 1:
        return [(round((height - size) / 2), round((width - size) / 2))]
    down, right = (height - size) // 4, (width - size) // 4
    if height > width:
        return [(quarter * down, 2 * right) for quarter in (0, 4, 2)]
    return [(2 * down, quarter * right) for quarter in (0, 4, 2)]


def _normalised(views: Tensor, settings: ViewSettings) -> Tensor:
    """In place, from 0 to 255 to what the image encoder expects."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (settings.mean, settings.std))
    return views.mul_(1 / (255 * std)).sub_(mean / std)


def _refuse_other_count(clip: ActionClip, n_frames: int) -> None:
    """Raise BadVideo for a folder that holds more or fewer images than its line says."""
    if clip.frames not in (None, n_frames):
        reason = f"{n_frames:,} frames are there, its line in the list says {clip.frames:,}"
        remedy = "keep only the clip's own frames in the folder, or correct the line"
        raise BadVideo(clip.path, reason, remedy)


class ActionTrainingSet:
    """Labelled clips to train on; a `training.RowDataset`.

    A row's random numbers depend on the seed, its place in the order of rows and its index alone, so that
    a resumed run, and one on other numbers of processes, sees the same views.

    Args:
        split: from `data.action.read_action`.
        settings: how clips are sampled and changed.
        seed: of all random numbers.
        read: `data.video.read_frames`, or the `read_frames` of a FrameCache.
    """

    def __init__(
        self,
        split: ActionSplit,
        settings: ViewSettings,
        *,
        seed: int,
        read: Callable[..., np.ndarray] = read_frames,
    ) -> None:
        self.clips, self.swaps, self.settings = split.clips, split.swaps, settings
        self.seed, self.read = seed, read
        self.shares: list[tuple[int, float]] = [(len(split.clips), 1.0)]
        self.augment = ClipRandAugment(settings.randaugment) if settings.randaugment else None

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """The file or folder of a clip."""
        return str(self.clips[index].path)

    def __getitem__(self, index: int) -> Example | Rejected:
        """Shape: the clip's id, float32 (R, T, 3, S, S), int64 (R,)."""
        clip, settings = self.clips[index], self.settings
        rng = np.random.default_rng([self.seed, index.place if isinstance(index, PlacedRow) else 0, index])

        def choose(n_frames: int) -> np.ndarray:
            _refuse_other_count(clip, n_frames)
            return draw_indices(
                n_frames, rng, frames=settings.frames, sampling=settings.sampling, stride=settings.stride
            )

        try:
            # RandAugment comes before scaling, as in the authors' code.
            frames = self.read(clip.path, choose, scale=None if self.augment else settings.train_scale)
        except BadVideo as error:
            return Rejected(clip.clip_id, str(error))
        views, flipped = training_views(frames, settings, rng, self.augment)
        mirrored = self.swaps.get(clip.label, clip.label)
        return clip.clip_id, views, torch.from_numpy(np.where(flipped, mirrored, clip.label))

    def collate(self, rows: Sequence[Example | Rejected]) -> dict[str, Any]:
        """The usable rows' views, one after the other; `count` labels and `read` frames are of them.

        Shape: video (B * R, T, 3, S, S), labels (B * R,).
        """
        rejected = [row for row in rows if isinstance(row, Rejected)]
        used = [row for row in rows if not isinstance(row, Rejected)]
        if used:
            video = torch.cat([views for _, views, _ in used])
            labels = torch.cat([labels for _, _, labels in used])
        else:
            # Every process runs the model in every step, or the others wait for it forever.
            size = self.settings.size_px
            video = torch.zeros(1, self.settings.frames, 3, size, size)
            labels = torch.full((1,), NO_LABEL)
        count = len(labels) if used else 0
        return {
            "video": video,
            "labels": labels,
            "row_ids": [row_id for row_id, _, _ in used],
            "rejected": rejected,
            "count": count,
            "read": count * self.settings.frames,
        }


class ActionTestSet:
    """Labelled clips to test on: the views of each, without anything random.

    Args: as `ActionTrainingSet`.
    """

    def __init__(
        self, split: ActionSplit, settings: ViewSettings, *, read: Callable[..., np.ndarray] = read_frames
    ) -> None:
        self.clips, self.settings, self.read = split.clips, settings, read

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """The file or folder of a clip."""
        return str(self.clips[index].path)

    def __getitem__(self, index: int) -> tuple[str, Tensor, int] | Rejected:
        """Shape: the clip's id, float32 (clips * crops, T, 3, S, S), its label."""
        clip, settings = self.clips[index], self.settings

        def choose(n_frames: int) -> np.ndarray:
            _refuse_other_count(clip, n_frames)
            return spread_indices(
                n_frames,
                frames=settings.frames,
                clips=settings.clips,
                sampling=settings.sampling,
                stride=settings.stride,
            ).ravel()

        try:
            frames = self.read(clip.path, choose, scale=settings.test_scale)
        except BadVideo as error:
            return Rejected(clip.clip_id, str(error))
        return clip.clip_id, evaluation_views(frames, settings), clip.label
