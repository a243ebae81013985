"""Keep decoded clips on disk, so that later epochs, runs and evaluations need no decoder.

    cache = FrameCache("/fast/disk/frames", max_gib=200)
    clip = cache.read("video.mp4", Sampling(sample_fps=2, short_side_px=224, max_frames=180))

An entry is FOLDER/ab/abcdef....safetensors, named by a hash of the file's state and the settings. Any number
of processes, also of different runs, may share a folder. A changed or moved video gets a new entry; the old
one stays until the folder is deleted, which is safe at any time.
"""

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moss_vllm.runtime.ranges import POSITIVE
from moss_vllm.runtime.screen import say
from moss_vllm.video.cache_pieces import count_key, read_pieces
from moss_vllm.video.clip import PAPER_SAMPLING, Clip, Sampling, read_clip, read_frames
from moss_vllm.video.decoders import check_decoder
from moss_vllm.video.frames import BadVideo, list_images, unique_frames

FORMAT = 3  # raise it whenever read_clip or read_frames returns other frames than before
MAX_FRAMES = 1000  # longer videos have entries of pieces; 0.35 GB at 256 x 455
SUFFIX = ".safetensors"
_LEDGER = "added"  # a file with one byte for every _UNIT bytes that any process added
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
    """Everything that decides what `read_clip` returns, in one line of json: the file's state and settings.

    Raises: BadVideo for a folder without images, OSError for a path that does not exist.
    """
    settings = {**sampling.key, "start_s": start_s, "end_s": end_s}
    numbers = {name: None if value is None else float(value) for name, value in settings.items()}
    return json.dumps(_describe_file(path, decoder) | numbers)


def describe_frames(
    path: str | os.PathLike[str], *, scale: int | tuple[int, int] | None = None, decoder: str = "auto"
) -> str:
    """Everything that decides which frames `read_frames` can return, as in `describe_clip`."""
    return json.dumps(_describe_file(path, decoder) | {"every_frame": True, "scale": scale})


def _describe_file(path: str | os.PathLike[str], decoder: str) -> dict[str, object]:
    """The state of a file or folder, and its decoder: decoders return different pixels."""
    path = os.path.abspath(path)
    state: dict[str, object] = {"format": FORMAT, "path": path}
    if decoder not in ("auto", "pyav"):
        state["decoder"] = decoder
    if os.path.isdir(path):
        stats = [(name, os.stat(os.path.join(path, name))) for name in list_images(path)]
        listed = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        state |= {"images": len(stats), "images_sha256": hashlib.sha256(listed.encode()).hexdigest()}
    else:
        stat = os.stat(path)
        state |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return state


class FrameCache:
    """`read_clip` and `read_frames` with their frames kept on disk; it pickles, for DataLoader workers.

    A cache above `max_gib`, or whose disk refuses a write, gets no more entries from this process. It warns
    once, and continues by decoding.

    Raises: OSError for a folder that cannot be created, ValueError for a limit that is not positive.
    """

    def __init__(self, folder: str | os.PathLike[str], max_gib: float | None = None) -> None:
        POSITIVE.check(max_gib=max_gib)
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_gib, self.is_closed = max_gib, False
        self._warned = self.folder / f".{uuid.uuid4().hex}.said"  # one path for all workers of this process
        self._ledger_at_start = self._ledger_bytes()  # first: a later entry counts twice, not never
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
        """What `read_clip` returns for the same arguments, bit for bit; later reads decode nothing.

        Raises: as `read_clip`.
        """

        def describe() -> str | None:
            try:
                return describe_clip(path, sampling, start_s=start_s, end_s=end_s, decoder=decoder)
            except (OSError, ValueError):  # read_clip raises the better error
                return None

        key = describe()
        if key is not None and (clip := self._load(key)):
            return clip
        clip = read_clip(path, sampling=sampling, start_s=start_s, end_s=end_s, decoder=decoder)
        # A file that changed while it was read, by a copy under way, gave frames of no one state.
        if key is not None and not self.is_closed and key == describe():
            arrays = {"frames": clip.frames, "frame_times_s": clip.frame_times_s}
            self.add_entry(key, arrays, {"crc32": _checksum(clip)})
        return clip

    def read_frames(
        self,
        path: str | os.PathLike[str],
        choose: Callable[[int], np.ndarray],
        *,
        scale: int | tuple[int, int] | None = None,
        decoder: str = "auto",
    ) -> np.ndarray:
        """What `clip.read_frames` returns for the same arguments, bit for bit.

        An entry holds every frame at that scale, as `choose` may pick others in the next epoch. A video with
        more than MAX_FRAMES frames has entries of pieces, see `cache_pieces`.

        Raises: as `clip.read_frames`.
        """

        def describe() -> str | None:
            try:
                return describe_frames(path, scale=scale, decoder=decoder)
            except (OSError, ValueError):  # read_frames raises the better error
                return None

        key = describe()
        if key is not None and (n_frames := self.open_entry(key, _count_frames)) is not None:
            shown, order = unique_frames(choose(n_frames), n_frames)
            if (frames := self.take_frames(key, shown)) is not None:
                return frames[order]
            choose = partial(_chosen_before, shown[order], choose)  # a second call may draw others
        if key is None:
            return read_frames(path, choose, scale=scale, decoder=decoder)
        try:
            if self.entry(count_key(key)).exists():
                raise _TooManyFrames
            if self.is_closed:
                return read_frames(path, choose, scale=scale, decoder=decoder)
            every = read_frames(path, _every_frame, scale=scale, decoder=decoder)
        except _TooManyFrames:
            return read_pieces(self, describe, os.fspath(path), choose, scale=scale, decoder=decoder)
        except BadVideo:  # the chosen frames may be good
            return read_frames(path, choose, scale=scale, decoder=decoder)
        shown, order = unique_frames(choose(len(every)), len(every))
        if key == describe():
            self.add_frames(key, every)
        return every[shown[order]]

    def take_frames(self, key: str, shown: np.ndarray) -> np.ndarray | None:
        """The frames with these places in an entry of frames; None if there is no such entry."""
        return self.open_entry(key, partial(_take_frames, shown=shown))

    def add_frames(self, key: str, frames: np.ndarray) -> None:
        """Write an entry of frames."""
        self.add_entry(key, {"frames": frames, "frame_crc32": _frame_checksums(frames)}, {})

    def entry(self, key: str) -> Path:
        """The path of the entry for a key from `describe_clip` or `describe_frames`; it need not exist."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _load(self, key: str) -> Clip | None:
        return self.open_entry(key, _take_clip)

    def open_entry(self, key: str, take: Callable[[Any], Taken]) -> Taken | None:
        """What `take` reads from an entry; None if there is no entry. A damaged one is removed."""
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

    def add_entry(self, key: str, arrays: dict[str, np.ndarray], sums: dict[str, str]) -> None:
        """Write an entry whole or not at all, unless the cache is full."""
        size = sum(array.nbytes for array in arrays.values()) + 2048  # the header takes about 1 kB
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
        """Bytes in the cache, added by any process; counted only under a limit."""
        return self._bytes_at_start + self._ledger_bytes() - self._ledger_at_start

    def _ledger_bytes(self) -> int:
        try:
            return os.stat(self.folder / _LEDGER).st_size * _UNIT
        except FileNotFoundError:
            return 0

    def measure(self) -> int:
        """Bytes of all entries; removes what killed processes left behind."""
        total = 0
        for folder in [self.folder, *self.folder.glob("[0-9a-f][0-9a-f]")]:
            for item in os.scandir(folder):
                try:
                    stat = item.stat()
                    if item.name.endswith((".part", ".said")) and time.time() - stat.st_mtime > _STALE_S:
                        os.unlink(item.path)
                    elif item.name.endswith((SUFFIX, ".part")):
                        total += stat.st_size
                except FileNotFoundError:  # another process removed it
                    continue
        return total

    def _close(self, reason: str) -> None:
        """Add no more entries; the first worker to get here prints why."""
        self.is_closed = True
        try:
            self._warned.touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # without the mark other workers warn as well
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
    """The frames with the indices `shown`; no others are read from disk."""
    every = entry.get_slice("frames")
    ends = np.flatnonzero(np.diff(shown) != 1) + 1  # runs of frames side by side are read at once
    frames = np.concatenate([every[int(run[0]) : int(run[-1]) + 1] for run in np.split(shown, ends)])
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
    """A checksum of each frame with its type and shape."""
    start = zlib.crc32(f"{frames.dtype}{frames.shape[1:]}".encode())
    return np.array([zlib.crc32(np.ascontiguousarray(frame).data, start) for frame in frames], np.uint32)


def _checksum(clip: Clip) -> str:
    """A checksum of both arrays with their types and shapes."""
    total = 0
    for array in (clip.frames, clip.frame_times_s):
        total = zlib.crc32(f"{array.dtype}{array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def choose_reader(
    folder: str | os.PathLike[str] | None, max_gib: float | None = None, decoder: str = "auto"
) -> Callable[..., Clip]:
    """`read_clip`, or `FrameCache.read` for a cache in `folder`, with this decoder.

    Raises: as `check_decoder` and FrameCache.
    """
    return _with_decoder(read_clip if folder is None else FrameCache(folder, max_gib).read, decoder)


def choose_frame_reader(
    folder: str | os.PathLike[str] | None, max_gib: float | None = None, decoder: str = "auto"
) -> Callable[..., np.ndarray]:
    """`read_frames`, or `FrameCache.read_frames` for a cache in `folder`, with this decoder.

    Raises: as `choose_reader`.
    """
    return _with_decoder(read_frames if folder is None else FrameCache(folder, max_gib).read_frames, decoder)


def _with_decoder(read: Callable[..., Taken], decoder: str) -> Callable[..., Taken]:
    check_decoder(decoder)
    return read if decoder == "auto" else partial(read, decoder=decoder)
