"""Keep decoded clips on disk, so that later epochs, runs and evaluations need no decoder.

    cache = FrameCache("/fast/disk/frames", max_gib=200)
    clip = cache.read("video.mp4", Sampling(sample_fps=2, short_side_px=224, max_frames=180))

An entry is FOLDER/ab/abcdef....safetensors, named by a hash of what was read and how. Any number of
processes, also of different runs, may share a folder. A changed or moved video is a new entry; the old one
stays until the folder is deleted. Nothing else needs the folder: it can go at any time.
"""

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moss_vllm.runtime.screen import say
from moss_vllm.video.clip import PAPER_SAMPLING, Clip, Sampling, read_clip, read_frames
from moss_vllm.video.decoders import check_decoder
from moss_vllm.video.frames import BadVideo, list_images, unique_frames

FORMAT = 2  # to be raised whenever read_clip or read_frames gives other frames than before
MAX_FRAMES = 1000  # of a video whose every frame is kept: 0.35 GB at 256 x 455
SUFFIX = ".safetensors"
_LEDGER = "added"  # one byte for every _UNIT bytes that any process has ever added
_UNIT = 16 * 1024
_STALE_S = 24 * 3600.0
Taken = TypeVar("Taken")


def describe_clip(
    path: str | os.PathLike[str],
    sampling: Sampling = PAPER_SAMPLING,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    decoder: str = "auto",
) -> str:
    """All that decides what `read_clip` returns, as one line of json: the file's state and the sampling.

    Raises: BadVideo for a folder without images, OSError for a path that is not there.
    """
    settings = {**asdict(sampling), "start_s": start_s, "end_s": end_s}
    numbers = {name: None if value is None else float(value) for name, value in settings.items()}
    return json.dumps(_describe_file(path, decoder) | numbers)


def describe_frames(
    path: str | os.PathLike[str], *, scale: int | tuple[int, int] | None = None, decoder: str = "auto"
) -> str:
    """All that decides what `read_frames` may return, as `describe_clip`."""
    return json.dumps(_describe_file(path, decoder) | {"every_frame": True, "scale": scale})


def _describe_file(path: str | os.PathLike[str], decoder: str) -> dict[str, object]:
    """The state a file or folder is in, and what reads it: pixels differ from decoder to decoder."""
    path = os.path.abspath(path)
    told: dict[str, object] = {"format": FORMAT, "path": path}
    if decoder not in ("auto", "pyav"):
        told["decoder"] = decoder
    if os.path.isdir(path):
        stats = [(name, os.stat(os.path.join(path, name))) for name in list_images(path)]
        listed = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        told |= {"images": len(stats), "images_sha256": hashlib.sha256(listed.encode()).hexdigest()}
    else:
        stat = os.stat(path)
        told |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return told


class FrameCache:
    """`read_clip` with a memory on disk; it pickles, so DataLoader workers may have it.

    Above `max_gib` nothing is added any more, and when the disk refuses a write this process writes no more;
    both are said once and reading goes on, by decoding.

    Raises: OSError for a folder that cannot be made, ValueError for a limit that is not positive.
    """

    def __init__(self, folder: str | os.PathLike[str], max_gib: float | None = None) -> None:
        if max_gib is not None and not max_gib > 0:
            raise ValueError(f"max_gib is {max_gib}; it must be above 0, or None for no limit")
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_gib, self.is_closed = max_gib, False
        self._said = self.folder / f".{uuid.uuid4().hex}.said"  # one name for all workers of this process
        self._ledger_at_start = self._ledger_bytes()  # first: what is added meanwhile counts twice, not never
        self._bytes_at_start = self.measure() if max_gib is not None else 0

    def read(
        self,
        path: str | os.PathLike[str],
        sampling: Sampling = PAPER_SAMPLING,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        decoder: str = "auto",
    ) -> Clip:
        """What `read_clip` returns for the same arguments, bit for bit; decoded once, then from disk.

        Raises: as read_clip.
        """

        def describe() -> str | None:
            try:
                return describe_clip(path, sampling, start_s=start_s, end_s=end_s, decoder=decoder)
            except (OSError, ValueError):  # read_clip says better what is wrong
                return None

        key = describe()
        if key is not None and (clip := self._load(key)):
            return clip
        clip = read_clip(path, sampling=sampling, start_s=start_s, end_s=end_s, decoder=decoder)
        # A file that is still being copied has changed by now: what was read then is of no state of it.
        if key is not None and not self.is_closed and key == describe():
            arrays = {"frames": clip.frames, "frame_times_s": clip.frame_times_s}
            self._add(key, arrays, {"crc32": _checksum(clip)})
        return clip

    def read_frames(
        self,
        path: str | os.PathLike[str],
        choose: Callable[[int], np.ndarray],
        *,
        scale: int | tuple[int, int] | None = None,
        decoder: str = "auto",
    ) -> np.ndarray:
        """What `video.read_frames` returns for the same arguments, bit for bit.

        An entry has every frame at that scale, for `choose` may want others in the next epoch; of a video
        with more than MAX_FRAMES nothing is kept.

        Raises: as read_frames.
        """

        def describe() -> str | None:
            try:
                return describe_frames(path, scale=scale, decoder=decoder)
            except (OSError, ValueError):  # read_frames says better what is wrong
                return None

        key = describe()
        if key is not None and (n_frames := self._open(key, _count_frames)) is not None:
            shown, order = unique_frames(choose(n_frames), n_frames)
            if (frames := self._open(key, partial(_take_frames, shown=shown))) is not None:
                return frames[order]
            choose = partial(_chosen_before, shown[order], choose)  # a generator would go on
        if key is None or self.is_closed:
            return read_frames(path, choose, scale=scale, decoder=decoder)
        try:
            every = read_frames(path, _every_frame, scale=scale, decoder=decoder)
        except (BadVideo, _TooManyFrames):  # the frames chosen may be good, or few enough
            return read_frames(path, choose, scale=scale, decoder=decoder)
        shown, order = unique_frames(choose(len(every)), len(every))
        if key == describe():
            self._add(key, {"frames": every, "frame_crc32": _frame_checksums(every)}, {})
        return every[shown[order]]

    def entry(self, key: str) -> Path:
        """The file for what `describe_clip` or `describe_frames` returned, there or not."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _load(self, key: str) -> Clip | None:
        return self._open(key, _take_clip)

    def _open(self, key: str, take: Callable[[Any], Taken]) -> Taken | None:
        """What `take` takes from an entry; None if there is none, or it is damaged, and then removed."""
        entry = self.entry(key)
        try:
            with safe_open(entry, "np") as file:
                _check_contents((file.metadata() or {}).get("key") == key)
                return take(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            _say(f"{entry}: damaged ({error}); removed, and its video is decoded again")
        try:
            entry.unlink(missing_ok=True)
        except OSError as error:
            self._close(f"{entry} cannot be removed ({error.strerror})")
        return None

    def _add(self, key: str, arrays: dict[str, np.ndarray], sums: dict[str, str]) -> None:
        """Write an entry whole or not at all, unless the cache is full."""
        size = sum(array.nbytes for array in arrays.values()) + 2048  # the header has about 1 kB
        if self.max_gib is not None and (used := self.used_bytes()) + size > self.max_gib * 2**30:
            self._close(f"{self.folder} is full: it has {used / 2**30:.2f} of {self.max_gib:g} GiB")
            return
        entry = self.entry(key)
        part = entry.with_name(f".{uuid.uuid4().hex}.part")
        data = save(arrays, {"key": key, **sums})
        try:
            entry.parent.mkdir(exist_ok=True)
            try:
                with open(self.folder / _LEDGER, "ab") as ledger:  # appending is atomic, so no lock
                    ledger.write(b"." * (len(data) // _UNIT + 1))
                part.write_bytes(data)
                os.replace(part, entry)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            self._close(f"{self.folder} cannot be written to ({error.strerror})")

    def used_bytes(self) -> int:
        """What the cache holds by now, all processes together; only with a limit."""
        return self._bytes_at_start + self._ledger_bytes() - self._ledger_at_start

    def _ledger_bytes(self) -> int:
        try:
            return os.stat(self.folder / _LEDGER).st_size * _UNIT
        except FileNotFoundError:
            return 0

    def measure(self) -> int:
        """Bytes of all entries; what processes that were killed left behind is removed."""
        total = 0
        for folder in [self.folder, *self.folder.glob("[0-9a-f][0-9a-f]")]:
            for item in os.scandir(folder):
                try:
                    stat = item.stat()
                    if item.name.endswith((".part", ".said")) and time.time() - stat.st_mtime > _STALE_S:
                        os.unlink(item.path)
                    elif item.name.endswith((SUFFIX, ".part")):
                        total += stat.st_size
                except FileNotFoundError:  # another process was faster
                    continue
        return total

    def _close(self, reason: str) -> None:
        """Add nothing more; the first worker to find out says so."""
        self.is_closed = True
        try:
            self._said.touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # no mark can be left: better said twice than never
        remedy = "free space, raise the limit, or name another folder"
        _say(f"{reason}; nothing is added any more, other clips are decoded each time ({remedy})")


def _say(message: str) -> None:
    say(f"frame cache: {message}", file=sys.stderr)


def _check_contents(is_right: bool) -> None:
    if not is_right:
        raise ValueError("its contents are not those that were written")


def _take_clip(entry: Any) -> Clip:
    clip = Clip(entry.get_tensor("frames"), entry.get_tensor("frame_times_s"))
    _check_contents(entry.metadata().get("crc32") == _checksum(clip))
    return clip


def _count_frames(entry: Any) -> int:
    count = len(entry.get_tensor("frame_crc32"))
    _check_contents(entry.get_slice("frames").get_shape()[:1] == [count] and count > 0)
    return count


def _take_frames(entry: Any, shown: np.ndarray) -> np.ndarray:
    """The frames shown; no others are read from disk."""
    every = entry.get_slice("frames")
    frames = np.concatenate([every[i : i + 1] for i in shown.tolist()])
    _check_contents(np.array_equal(_frame_checksums(frames), entry.get_tensor("frame_crc32")[shown]))
    return frames


class _TooManyFrames(Exception):
    """A video is too long to be kept whole."""


def _every_frame(n_frames: int) -> np.ndarray:
    if n_frames > MAX_FRAMES:
        raise _TooManyFrames
    return np.arange(n_frames)


def _chosen_before(chosen: np.ndarray, choose: Callable[[int], np.ndarray], n_frames: int) -> np.ndarray:
    return chosen if chosen.max() < n_frames else choose(n_frames)


def _frame_checksums(frames: np.ndarray) -> np.ndarray:
    """Of each frame, and of what the header says it is."""
    start = zlib.crc32(f"{frames.dtype}{frames.shape[1:]}".encode())
    return np.array([zlib.crc32(np.ascontiguousarray(frame).data, start) for frame in frames], np.uint32)


def _checksum(clip: Clip) -> str:
    """Of the numbers and of what the header says they are."""
    total = 0
    for array in (clip.frames, clip.frame_times_s):
        total = zlib.crc32(f"{array.dtype}{array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def choose_reader(
    folder: str | os.PathLike[str] | None, max_gib: float | None = None, decoder: str = "auto"
) -> Callable[..., Clip]:
    """`read_clip`, or for a folder the cached one, with this decoder.

    Raises: as `check_decoder` and FrameCache.
    """
    return _with_decoder(read_clip if folder is None else FrameCache(folder, max_gib).read, decoder)


def choose_frame_reader(
    folder: str | os.PathLike[str] | None, max_gib: float | None = None, decoder: str = "auto"
) -> Callable[..., np.ndarray]:
    """`read_frames`, or for a folder the cached one, with this decoder.

    Raises: as `choose_reader`.
    """
    return _with_decoder(read_frames if folder is None else FrameCache(folder, max_gib).read_frames, decoder)


def _with_decoder(read: Callable[..., Taken], decoder: str) -> Callable[..., Taken]:
    check_decoder(decoder)
    return read if decoder == "auto" else partial(read, decoder=decoder)
