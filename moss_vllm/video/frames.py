"""Check and resize the frames of a video, whatever stored them; read those stored as a folder of images."""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from moss_vllm.runtime.ranges import MULTIPLE_PX

# Suffixes of images, and the one format each is read as: Pillow would start Ghostscript for another.
IMAGE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
IMAGE_EXTENSIONS = tuple(IMAGE_FORMATS)
OPTICAL_FLOW = ("flow_x", "flow_y")  # mmaction2 keeps these beside the pictures
MAX_ASPECT = 20
MAX_FRAME_PX = 100_000_000
MAX_CLIP_BYTES = 2 * 1024**3
ONE_SEQUENCE = "keep the frames of one video in the folder and nothing else, numbered, such as img_00001.jpg"
REPLACE_FILE = "copy or download the file again, or leave it out of the annotation file"


@dataclass(frozen=True)
class FrameSize:
    """The sizes of frames that a model takes as they are.

    Args:
        multiple_px: both sides are multiples of it.
        square_px: frames are squares with this side, whatever the video's own shape; None: any sides.
    """

    multiple_px: int = MULTIPLE_PX
    square_px: int | None = None

    def check(self, height_px: int, width_px: int) -> None:
        """ValueError for frames of another size."""
        sides = (height_px, width_px)
        if self.square_px is not None and sides != (self.square_px, self.square_px):
            wanted = f"squares of {self.square_px} px"
        elif min(sides) < 1 or any(side % self.multiple_px for side in sides):
            wanted = f"sides that are multiples of {self.multiple_px} px"
        else:
            return
        raise ValueError(
            f"frames of {height_px} x {width_px} px; this model takes {wanted}: read the clip at such a size"
        )


ANY_SIDES = FrameSize()


class BadVideo(ValueError):
    """A video that cannot be read: which, why, and what to do about it.

    It survives pickling, and the DataLoader, which rebuilds a worker's error from its printed traceback.
    """

    def __init__(self, path: str, reason: str = "", remedy: str = "") -> None:
        super().__init__(path, reason, remedy)
        if not reason:  # rebuilt by the DataLoader: `path` is a traceback that ends in str(original)
            message = path.rstrip().rpartition("BadVideo: ")[2].removesuffix(")")
            message, _, remedy = message.rpartition(" (remedy: ")
            path, reason = message.split(": ", 1) if ": " in message else (path, reason)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} (remedy: {self.remedy})"


def list_images(folder: str) -> list[str]:
    """Names of the frames in a folder, in the order of the numbers in them.

    They form one sequence: the names differ only in their numbers, and one of the numbers is different in
    each. Files of optical flow beside other frames are left out.

    Raises: BadVideo if the folder cannot be listed, holds no image, or more than one sequence.
    """
    try:
        names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_EXTENSIONS) and n[0] != "."]
    except OSError as error:
        raise BadVideo(folder, f"{error.strerror}", "check that you may read the folder") from error
    if not names:
        remedy = f"name a video file, or a folder of {', '.join(IMAGE_EXTENSIONS)} frames"
        raise BadVideo(folder, "the folder holds no images", remedy)
    names = [n for n in names if not n.lower().startswith(OPTICAL_FLOW)] or names
    kinds = Counter(re.sub(r"\d+", "#", os.path.splitext(name)[0]).casefold() for name in names)
    if len(kinds) > 1:
        shown = sorted(kinds, key=lambda kind: (-kinds[kind], kind))[:5]
        counts = ", ".join(f"{kinds[kind]} called {kind!r}" for kind in shown)
        more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
        raise BadVideo(folder, f"the folder holds more than one kind of image: {counts}{more}", ONE_SEQUENCE)
    names.sort(key=_natural)
    numbers = [[int(number) for number in re.findall(r"\d+", os.path.splitext(name)[0])] for name in names]
    if len(names) > 1 and not any(len(set(column)) == len(names) for column in zip(*numbers, strict=True)):
        first: dict[int, str] = {}
        for name, in_name in zip(names, numbers, strict=True):
            other = first.setdefault(in_name[-1] if in_name else 0, name)
            if other != name:
                raise BadVideo(folder, f"two images have one number: {other!r} and {name!r}", ONE_SEQUENCE)
    return names


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_images(folder: str, names: list[str]) -> Iterator[np.ndarray]:
    """The images of these names, one at a time, turned as their EXIF data say.

    16-bit greys are scaled to 8 bits; transparency is ignored, as in video.

    Shape: uint8 (H, W, 3), RGB.
    Raises: BadVideo for an image that cannot be read, or differs in size from the first.
    """
    first_size = None
    for name in names:
        path = os.path.join(folder, name)
        with open_image(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # Pillow would clip to 255
                frame = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
            else:
                image.info.pop("transparency", None)  # Pillow would warn about a palette's
                frame = np.asarray(image.convert("RGB"))
        first_size = first_size or frame.shape
        if frame.shape != first_size:
            sizes = [f"{width}x{height}" for height, width, _ in (frame.shape, first_size)]
            reason = f"the image is {sizes[0]}, the folder's first frame {sizes[1]}"
            raise BadVideo(path, reason, "keep one video of one size per folder")
        yield frame


def folder_frame_size(folder: str) -> tuple[int, int]:
    """Height and width of a folder's first frame.

    Raises: BadVideo as `list_images` and `read_images`.
    """
    with open_image(os.path.join(folder, list_images(folder)[0])) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if is_turned else (image.height, image.width)


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image of the format that its name promises, of at most MAX_FRAME_PX, without decoding it.

    Raises: BadVideo, also for an error while it is open.
    """
    wanted = IMAGE_FORMATS[os.path.splitext(path)[1].lower()]
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may never return
            raise BadVideo(path, "is a pipe, a device or a folder, not an image", ONE_SEQUENCE)
        with Image.open(path, formats=[wanted]) as image:
            check_frame_size(path, image.height, image.width)
            # The several pictures of a JPEG are views of one scene.
            if wanted != "JPEG" and getattr(image, "n_frames", 1) > 1:
                reason = f"the image holds {image.n_frames} pictures, where one frame is wanted"
                raise BadVideo(path, reason, "store each picture as a file of its own")
            yield image
    except BadVideo:
        raise
    except UnidentifiedImageError as error:
        remedy = "name each image by its format, or convert it"
        raise BadVideo(path, f"the image is no {wanted} by its content", remedy) from error
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        raise BadVideo(path, f"the image cannot be read ({error})", REPLACE_FILE) from error


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


def target_size(
    height: int, width: int, short_side_px: int | None, sides: FrameSize = ANY_SIDES
) -> tuple[int, int]:
    """Height and width after resizing: the nearest multiples of `multiple_px`, or the square."""
    if sides.square_px is not None:
        return sides.square_px, sides.square_px
    scale = 1.0 if short_side_px is None else short_side_px / min(height, width)
    multiple = sides.multiple_px
    rows, columns = (max(1, math.floor(side * scale / multiple + 0.5)) for side in (height, width))
    return rows * multiple, columns * multiple


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
    """The distinct indices in `chosen`, sorted, and for each of `chosen` its place among them.

    Raises: ValueError if there are none, or one is out of range.
    """
    shown, order = np.unique(chosen, return_inverse=True)
    if np.ndim(chosen) != 1 or not len(shown) or shown[0] < 0 or shown[-1] >= n_frames:
        raise ValueError(f"frames {np.asarray(chosen).tolist()} were chosen from {n_frames}, counted from 0")
    return shown, order


def short_side_within(height: int, width: int, max_pixels: int, sides: FrameSize = ANY_SIDES) -> int:
    """The largest short side, the video's own at most, of frames with `max_pixels` or fewer."""
    multiple = sides.multiple_px
    for short_side_px in range(min(height, width) // multiple * multiple, multiple, -multiple):
        if math.prod(target_size(height, width, short_side_px, sides)) <= max_pixels:
            return short_side_px
    return multiple


def stack_frames(
    path: str,
    frames: Iterator[np.ndarray],
    count: int,
    short_side_px: int | None,
    sides: FrameSize = ANY_SIDES,
) -> np.ndarray:
    """`stack_resized` to the size that `target_size` gives."""
    return stack_resized(path, frames, count, partial(target_size, short_side_px=short_side_px, sides=sides))


def stack_resized(
    path: str,
    frames: Iterator[np.ndarray],
    count: int,
    resized: Callable[[int, int], tuple[int, int]],
) -> np.ndarray:
    """Resize `count` frames one by one, so that memory holds one frame of full size at a time.

    `resized` gives the height and width after resizing, from those of the first frame.

    Shape: frames uint8 (H, W, 3) -> (T, H, W, 3).
    Raises: BadVideo for frames beyond the limits, of more than one shape, or a clip of over MAX_CLIP_BYTES.
    """
    clip: np.ndarray | None = None
    for i, frame in enumerate(frames):
        if clip is None:
            stored = frame.shape[:2]
            check_frame_size(path, *stored)
            size = resized(*stored)
            check_clip_size(path, count, size)
            clip = np.empty((count, *size, 3), np.uint8)
        check_same_shape(path, stored, frame.shape[:2])
        if frame.shape[:2] != size:
            image = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        clip[i] = frame
    assert clip is not None, f"{path}: no frame was chosen"
    return clip


def check_same_shape(path: str, first: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise BadVideo where a picture (height, width) scaled to the first one's size would be distorted."""
    if abs(first[0] * size[1] - first[1] * size[0]) > max(*first, *size):  # each side may be rounded
        reason = f"its pictures change from {first[1]}x{first[0]} to {size[1]}x{size[0]}"
        raise BadVideo(path, reason, "encode it to one size, `ffmpeg -i IN OUT.mp4`, or cut it there")
