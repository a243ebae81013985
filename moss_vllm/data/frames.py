"""What every video ends in, whatever stored it: checked, resized frames, or BadVideo.

Also reads the frames of a video that is stored as a folder of images.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MULTIPLE_PX = 28  # a side holds whole 2 x 2 groups of 14-pixel patches
MAX_ASPECT = 20
MAX_FRAME_PX = 100_000_000
MAX_CLIP_BYTES = 2 * 1024**3
REPLACE_FILE = "copy or download the file again, or leave it out of the annotation file"


class BadVideo(ValueError):
    """A video cannot be read; says which, why, and what to do about it.

    It survives pickling, and the DataLoader, which rebuilds a worker's error from its printed traceback.
    """

    def __init__(self, path: str, reason: str = "", remedy: str = "") -> None:
        super().__init__(path, reason, remedy)
        if not reason:  # rebuilt by the DataLoader: `path` is a traceback that ends in str(original)
            found = re.search(r"BadVideo: (.+?): (.+) \(remedy: (.+)\)\s*$", path)
            path, reason, remedy = found.groups() if found else (path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} (remedy: {self.remedy})"


def list_images(folder: str) -> list[str]:
    """Names of the frames in a folder, in the order of the numbers in them.

    Raises: BadVideo if the folder cannot be listed or holds no image.
    """
    try:
        names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_EXTENSIONS) and n[0] != "."]
    except OSError as error:
        raise BadVideo(folder, f"{error.strerror}", "check that you may read the folder") from error
    if not names:
        remedy = f"name a video file, or a folder of {', '.join(IMAGE_EXTENSIONS)} frames"
        raise BadVideo(folder, "the folder holds no images", remedy)
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_images(folder: str, names: list[str]) -> Iterator[np.ndarray]:
    """The images named, one at a time.

    Shape: uint8 (H, W, 3), RGB.
    Raises: BadVideo for an image that cannot be read, or is not of the first one's size.
    """
    first_size = None
    for name in names:
        path = os.path.join(folder, name)
        try:
            with Image.open(path) as image:
                check_frame_size(path, image.height, image.width)
                frame = np.asarray(image.convert("RGB"))
        except BadVideo:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadVideo(path, f"the image cannot be read ({error})", REPLACE_FILE) from error
        first_size = first_size or frame.shape
        if frame.shape != first_size:
            sizes = [f"{width}x{height}" for height, width, _ in (frame.shape, first_size)]
            seen = f"the image is {sizes[0]}, the folder's first frame {sizes[1]}"
            raise BadVideo(path, seen, "keep one video of one size per folder")
        yield frame


def check_frame_size(path: str, height: int, width: int) -> None:
    """Raise BadVideo for frames of more than MAX_FRAME_PX, or with sides more than MAX_ASPECT-fold apart."""
    if height * width > MAX_FRAME_PX:
        reason = f"frames of {width}x{height} are {height * width} pixels; at most {MAX_FRAME_PX} are read"
        raise BadVideo(path, reason, "scale the video down with `ffmpeg -i IN -vf scale=1280:-2 OUT.mp4`")
    if max(height, width) > MAX_ASPECT * min(height, width):
        reason = f"frames of {width}x{height} are too narrow; the sides may differ {MAX_ASPECT}-fold"
        raise BadVideo(path, reason, "crop the video, or leave it out of the annotation file")


def check_clip_size(path: str, count: int, size: tuple[int, int]) -> None:
    """Raise BadVideo for `count` frames of this height and width that take more than MAX_CLIP_BYTES."""
    n_bytes = count * size[0] * size[1] * 3
    if n_bytes > MAX_CLIP_BYTES:
        reason = f"{count} frames of {size[1]}x{size[0]} take {n_bytes} bytes, over {MAX_CLIP_BYTES}"
        raise BadVideo(path, reason, "lower short_side_px or max_frames")


def target_size(height: int, width: int, short_side_px: int | None) -> tuple[int, int]:
    """Height and width after resizing: the nearest multiples of MULTIPLE_PX."""
    scale = 1.0 if short_side_px is None else short_side_px / min(height, width)
    rows, columns = (max(1, math.floor(side * scale / MULTIPLE_PX + 0.5)) for side in (height, width))
    return rows * MULTIPLE_PX, columns * MULTIPLE_PX


def scaled_size(height: int, width: int, scale: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width after scaling: `scale` is the shorter side, or (height, width), or None for no change.

    The longer side is rounded down, as torchvision's Resize does.
    """
    if scale is None or isinstance(scale, tuple):
        return scale or (height, width)
    short, long = min(height, width), max(height, width)
    other = scale * long // short
    return (scale, other) if height <= width else (other, scale)


def unique_frames(chosen: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices in `chosen`, each once and sorted, and where in them each of `chosen` is.

    Raises: ValueError if there are none, or some are of no frame.
    """
    shown, order = np.unique(chosen, return_inverse=True)
    if np.ndim(chosen) != 1 or not len(shown) or shown[0] < 0 or shown[-1] >= n_frames:
        raise ValueError(f"frames {np.asarray(chosen).tolist()} were chosen from {n_frames}, counted from 0")
    return shown, order


def short_side_within(height: int, width: int, max_pixels: int) -> int:
    """The largest short side, the video's own at most, of frames with `max_pixels` or fewer."""
    for short_side_px in range(min(height, width) // MULTIPLE_PX * MULTIPLE_PX, MULTIPLE_PX, -MULTIPLE_PX):
        if math.prod(target_size(height, width, short_side_px)) <= max_pixels:
            return short_side_px
    return MULTIPLE_PX


def stack_frames(
    path: str, frames: Iterator[np.ndarray], count: int, short_side_px: int | None
) -> np.ndarray:
    """`stack_resized` to what `target_size` says.

    The shorter side becomes short_side_px (None: stays), then both the nearest multiple of MULTIPLE_PX.
    """
    return stack_resized(path, frames, count, partial(target_size, short_side_px=short_side_px))


def stack_resized(
    path: str, frames: Iterator[np.ndarray], count: int, resized: Callable[[int, int], tuple[int, int]]
) -> np.ndarray:
    """Resize `count` frames as they come, so that one frame of full size is held at a time.

    `resized` says which height and width become of a height and width.

    Shape: frames uint8 (H, W, 3) -> (T, H, W, 3).
    Raises: BadVideo for frames beyond the limits, or a clip of more than MAX_CLIP_BYTES.
    """
    clip: np.ndarray | None = None
    for i, frame in enumerate(frames):
        if clip is None:
            check_frame_size(path, frame.shape[0], frame.shape[1])
            size = resized(frame.shape[0], frame.shape[1])
            check_clip_size(path, count, size)
            clip = np.empty((count, *size, 3), np.uint8)
        if frame.shape[:2] != size:
            image = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        clip[i] = frame
    assert clip is not None, f"{path}: no frame was chosen"
    return clip
