"""Reading clips as Something-Something V2 has them, measured; `experiments/benchmark_action.py` prints it.

The clips are generated, then read and made into training views as the recipe does it.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/clip_reading.py is a part of benchmark_action.py, not a command")

import av
import numpy as np
from measuring import show_spread, spread
from PIL import Image
from rich.table import Table

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.batches import ActionTrainingSet
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.runtime.screen import Screen, plain
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import read_frames

# Something-Something V2 has 220,847 webm files in 19.4 GB; the qualities here give files of about that size.
HEIGHT, WIDTH, FPS, CLIP_FRAMES = 240, 426, 12, 45
CODECS = {
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0"}),
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "22"}),
}


def measure_reading(suffix: str, clips: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of CPU time to read a clip and to make views of it, in each way."""
    ways, settings = [], DATASET_VIEWS["ssv2"]["paper"]
    with tempfile.TemporaryDirectory() as folder:
        split, kilobytes = write_clips(Path(folder) / "videos", suffix, clips)
        for augmented in (False, True):
            views = settings if augmented else dataclasses.replace(settings, randaugment=None)
            for cache in (None, FrameCache(Path(folder) / f"cache {augmented}")):
                reader = TimedReader(read_frames if cache is None else cache.read_frames)
                dataset = ActionTrainingSet(split, views, seed=0, read=reader)
                measured = [time_rows(dataset) for _ in range(repeats + 1)][1:]  # the first fills the cache
                read_ms, views_ms = (spread(column) for column in zip(*measured, strict=True))
                way: dict[str, Any] = {"cached": cache is not None, "randaugment": augmented}
                way |= {"read_ms": read_ms, "views_ms": views_ms}
                way["clips_per_s"] = spread([1000 / sum(one) for one in measured])
                way["cache_mib_a_clip"] = cache.measure() / clips / 2**20 if cache else None
                ways.append(way)
    size = {"frames": CLIP_FRAMES, "height": HEIGHT, "width": WIDTH, "kb_a_clip": kilobytes}
    return {"container": suffix, "clips": clips, "views_a_clip": settings.repeats, **size, "ways": ways}


class TimedReader:
    """Reads clips, and adds up their CPU time in `seconds`."""

    def __init__(self, read: Any) -> None:
        self.read, self.seconds = read, 0.0

    def __call__(self, *args: Any, **settings: Any) -> np.ndarray:
        """The frames."""
        started = time.process_time()
        frames = self.read(*args, **settings)
        self.seconds += time.process_time() - started
        return frames


def time_rows(dataset: ActionTrainingSet) -> tuple[float, float]:
    """Milliseconds of CPU time per clip: those of the `TimedReader`, and the others."""
    reader: Any = dataset.read
    reader.seconds, started = 0.0, time.process_time()
    for index in range(len(dataset)):
        if isinstance(row := dataset[index], Rejected):
            raise SystemExit(plain(f"clip {row.row_id} cannot be read: {row.reason}"))
    whole = time.process_time() - started
    return 1000 * reader.seconds / len(dataset), 1000 * (whole - reader.seconds) / len(dataset)


def write_clips(folder: Path, suffix: str, clips: int) -> tuple[ActionSplit, float]:
    """Video files of a box that crosses a panning, slightly noisy wall; their mean size in kB."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}{suffix}" for number in range(clips)]
    codec, options = CODECS[suffix]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(40, 216, (12, 24, 3), np.uint8))
        wall = np.asarray(small.resize((WIDTH + 2 * CLIP_FRAMES, HEIGHT), Image.Resampling.BICUBIC))
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream(codec, rate=FPS, options={**options, "threads": "1"})
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for t in range(CLIP_FRAMES):
                frame = wall[:, 2 * t : 2 * t + WIDTH].astype(float)
                frame[80:160, 5 * t : 5 * t + 80] = 230
                frame = (frame + rng.normal(0, 3, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
    rows = tuple(ActionClip(path.stem, str(path), 0) for path in paths)
    split = ActionSplit("ssv2", "train", ("Moving something",), rows, (), None, str(folder))
    return split, statistics.mean(path.stat().st_size for path in paths) / 1000


def print_reading(console: Screen, containers: Sequence[dict[str, Any]]) -> None:
    """A row for each container and way."""
    views = f"{containers[0]['views_a_clip']} x {DATASET_VIEWS['ssv2']['paper'].frames} of "
    views += f"{DATASET_VIEWS['ssv2']['paper'].size_px} px"
    size_of_clips = f"{CLIP_FRAMES} frames of {HEIGHT} x {WIDTH} to {views}"
    heads = ("RandAugment", "clips/s", "read, ms a clip", "views, ms a clip", "cache, MiB a clip")
    title = f"training clips in one process, {size_of_clips}; median (least-most)"
    table = Table("file", "from", *heads, title=title)
    for one in containers:
        for way in one["ways"]:
            name = [
                f"{one['container'][1:]}, {one['kb_a_clip']:.0f} kB",
                "cache" if way["cached"] else "file",
            ]
            cells = [show_spread(way[key]) for key in ("clips_per_s", "read_ms", "views_ms")]
            size = f"{way['cache_mib_a_clip']:.1f}" if way["cached"] else "-"
            table.add_row(*name, "yes" if way["randaugment"] else "no", *cells, size)
    console.print(table)
