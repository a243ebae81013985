"""Views of a clip: how its frames are sampled, changed and cut, for training and for tests."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moss_vllm.recognition.augment import draw_box, grey
from moss_vllm.recognition.frame_choice import SAMPLINGS
from moss_vllm.runtime.ranges import FROM_ONE, SHARE
from moss_vllm.video.frames import scaled_size
from moss_vllm.video.rand_augment import ClipRandAugment

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Scale = int | tuple[int, int]


@dataclass(frozen=True)
class ViewSettings:
    """How a clip is sampled, changed and cut.

    Args:
        frames: T, frames of a clip.
        sampling: one of `frame_choice.SAMPLINGS`.
        stride: frames from one to the next, in dense sampling.
        size_px: side of the square that the model sees.
        train_scale, test_scale: shorter side before cropping, or (height, width).
        clips, crops: a test shows clips x crops views; crops is 1 (centre) or 3 (left, right, centre).
        randaugment: timm's notation, or None.
        min_area: the least share of the picture that a random box covers; 1 is the whole picture.
        flip, grayscale: probabilities that a whole clip is mirrored, or turned grey.
        repeats: training views of one clip, all of the same frames.
        mean, std: what the image encoder expects, by channel, for values from 0 to 1.
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
        FROM_ONE.check(**{n: getattr(self, n) for n in ("frames", "stride", "size_px", "clips", "repeats")})
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops is {self.crops}; it must be 1 (centre) or 3 (left, right, centre)")
        for name in ("train_scale", "test_scale"):
            scale = getattr(self, name)
            if min(scale if isinstance(scale, tuple) else (scale,)) < self.size_px:
                raise ValueError(f"{name} is {scale}, below size_px, which is {self.size_px}; raise it")
        SHARE.check(flip=self.flip, grayscale=self.grayscale, min_area=self.min_area)

    def at_size(self, size_px: int) -> "ViewSettings":
        """The same views in another resolution: both scales change with it."""

        def scaled(scale: Scale) -> Scale:
            sides = [round(side * size_px / self.size_px) for side in np.atleast_1d(scale).tolist()]
            return (sides[0], sides[1]) if isinstance(scale, tuple) else sides[0]

        return dataclasses.replace(
            self, size_px=size_px, train_scale=scaled(self.train_scale), test_scale=scaled(self.test_scale)
        )


def training_views(
    frames: np.ndarray,
    settings: ViewSettings,
    rng: np.random.Generator,
    augment: ClipRandAugment | None = None,
) -> tuple[Tensor, np.ndarray]:
    """R random views of the same frames, and which of them are mirrored.

    In this order: RandAugment, scaling, a random box resized to the square, grey, mirroring. Each changes all
    frames alike.

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
    """A box (top, left, height, width) of the scaled images; pixels outside the box are never computed.

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
    """Every crop of every clip, clip after clip; `frames` holds the scaled frames of all clips in that order.

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
    """Top and left of each crop, in quarters of the free pixels, rounded as in the authors' code."""
    if crops == 1:
        return [(round((height - size) / 2), round((width - size) / 2))]
    down, right = (height - size) // 4, (width - size) // 4
    if height > width:
        return [(quarter * down, 2 * right) for quarter in (0, 4, 2)]
    return [(2 * down, quarter * right) for quarter in (0, 4, 2)]


def _normalised(views: Tensor, settings: ViewSettings) -> Tensor:
    """Turn pixels from 0 to 255 into what the image encoder expects, in place."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (settings.mean, settings.std))
    return views.mul_(1 / (255 * std)).sub_(mean / std)
