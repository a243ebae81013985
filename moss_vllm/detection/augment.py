"""Random changes to a training window, the same for all its frames: as AdaTAD's.

frames -> a box of them, resized to the square -> perhaps mirrored -> RandAugment -> colours; always uint8

All random numbers come from the generator that the caller passes. AdaTAD draws the signs of RandAugment and
the order of the colours once a run, and cuts out a square where RandAugment here adds to dark pixels.
"""

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as change

from moss_vllm.video.rand_augment import ClipRandAugment

MIN_AREA, LOG_RATIO = 0.08, (math.log(3 / 4), math.log(4 / 3))
FILTER = Image.Resampling.BILINEAR
RAND_AUGMENT = ClipRandAugment(
    "rand-m9-n2-p1", {"translate_pct": 0.2, "img_mean": (0, 0, 0), "interpolation": FILTER}
)
# What changes a colour, and the ends of its range; 1, and for the hue 0, change nothing.
COLOUR_CHANGES = (
    (change.adjust_brightness, 0.5, 1.5),
    (change.adjust_contrast, 0.5, 1.5),
    (change.adjust_saturation, 0.5, 1.5),
    (change.adjust_hue, -0.1, 0.1),
)


def change_frames(frames: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """The frames of a window as training shows them.

    Shape: uint8 (T, H, W, 3) -> (T, S, S, 3), RGB.
    """
    box = draw_crop(frames.shape[1], frames.shape[2], rng)
    is_mirrored = rng.random() < 0.5
    images = [Image.fromarray(frame).resize((size_px, size_px), FILTER, box=box) for frame in frames]
    if is_mirrored:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    images = RAND_AUGMENT(images, rng)
    for number in rng.permutation(len(COLOUR_CHANGES)):
        adjust, low, high = COLOUR_CHANGES[number]
        value = rng.uniform(low, high)
        images = [adjust(image, value) for image in images]
    return np.stack([np.asarray(image) for image in images])


def draw_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of a frame, to be resized to a square.

    Its area is uniform from MIN_AREA of the frame, its width over its height log-uniform from 3:4 to 4:3.
    After ten boxes that do not fit, it is the largest square, in the middle.
    """
    for _ in range(10):
        area = height * width * rng.uniform(MIN_AREA, 1.0)
        ratio = math.exp(rng.uniform(*LOG_RATIO))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
