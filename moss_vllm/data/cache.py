"""Keep decoded clips on disk, so that later epochs, runs and evaluations need no decoder.

    cache = FrameCache("/fast/disk/frames", max_gib=200)
    clip = cache.read("video.mp4", sample_fps=2, short_side_px=224, max_frames=180)

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
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moss_vllm.data.frames import list_images
from moss_vllm.data.video import Clip, read_clip

FORMAT = 1  # to be raised whenever read_clip gives other frames than before
SUFFIX = ".safetensors"
_LEDGER = "added"  # one byte for every _UNIT bytes that any process has ever added
_UNIT = 16 * 1024
_STALE_S = 24 * 3600.0


def describe_clip(
    path: str | os.PathLike[str],
    *,
    sample_fps: float = 2.0,
    short_side_px: int | None = 224,
    max_frames: int = 180,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> str:
    """All that decides what `read_clip` returns, as one line of json: the file's state and the sampling.

    Raises: BadVideo for a folder without images, OSError for a path that is not there.
    """
    path = os.path.abspath(path)
    told: dict[str, object] = {"format": FORMAT, "path": path}
    if os.path.isdir(path):
        stats = [(name, os.stat(os.path.join(path, name))) for name in list_images(path)]
        listed = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        told |= {"images": len(stats), "images_sha256": hashlib.sha256(listed.encode()).hexdigest()}
    else:
        stat = os.stat(path)
        told |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    settings = {
        "sample_fps": sample_fps,
        "short_side_px": short_side_px,
        "max_frames": max_frames,
        "start_s": start_s,
        "end_s": end_s,
    }
    return json.dumps(
        told | {name: None if value is None else float(value) for name, value in settings.items()}
    )


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
        *,
        sample_fps: float = 2.0,
        short_side_px: int | None = 224,
        max_frames: int = 180,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Clip:
        """What `read_clip` returns for the same arguments, bit for bit; decoded once, then from disk.

        Raises: as read_clip.
        """

        def describe() -> str | None:
            try:
                return describe_clip(
                    path,
                    sample_fps=sample_fps,
                    short_side_px=short_side_px,
                    max_frames=max_frames,
                    start_s=start_s,
                    end_s=end_s,
                )
            except (OSError, ValueError):  # read_clip says better what is wrong
                return None

        key = describe()
        if key is not None and (clip := self._load(key)):
            return clip
        clip = read_clip(
            path,
            sample_fps=sample_fps,
            short_side_px=short_side_px,
            max_frames=max_frames,
            start_s=start_s,
            end_s=end_s,
        )
        # A file that is still being copied has changed by now: what was read then is of no state of it.
        if key is not None and not self.is_closed and key == describe():
            self._add(key, clip)
        return clip

    def entry(self, key: str) -> Path:
        """The file for what `describe_clip` returned, there or not."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _load(self, key: str) -> Clip | None:
        entry = self.entry(key)
        try:
            with safe_open(entry, "np") as file:
                found = file.metadata() or {}
                clip = Clip(file.get_tensor("frames"), file.get_tensor("frame_times_s"))
            if found.get("key") != key or found.get("crc32") != _checksum(clip):
                raise ValueError("its contents are not those that were written")
            return clip
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            _say(f"{entry}: damaged ({error}); removed, and its video is decoded again")
        try:
            entry.unlink(missing_ok=True)
        except OSError as error:
            self._close(f"{entry} cannot be removed ({error.strerror})")
        return None

    def _add(self, key: str, clip: Clip) -> None:
        """Write an entry whole or not at all, unless the cache is full."""
        size = clip.frames.nbytes + clip.frame_times_s.nbytes + 2048  # the header has about 1 kB
        if self.max_gib is not None and (used := self.used_bytes()) + size > self.max_gib * 2**30:
            self._close(f"{self.folder} is full: it has {used / 2**30:.2f} of {self.max_gib:g} GiB")
            return
        entry = self.entry(key)
        part = entry.with_name(f".{uuid.uuid4().hex}.part")
        data = save(
            {"frames": clip.frames, "frame_times_s": clip.frame_times_s},
            {"key": key, "crc32": _checksum(clip)},
        )
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
    print(f"frame cache: {message}", file=sys.stderr)


def _checksum(clip: Clip) -> str:
    """Of the numbers and of what the header says they are."""
    total = 0
    for array in (clip.frames, clip.frame_times_s):
        total = zlib.crc32(f"{array.dtype}{array.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


def choose_reader(folder: str | os.PathLike[str] | None, max_gib: float | None = None) -> Callable[..., Clip]:
    """`read_clip`, or for a folder the cached one."""
    return read_clip if folder is None else FrameCache(folder, max_gib).read
