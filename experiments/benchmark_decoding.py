"""CPU time of `read_clip`, divided by that of the cheapest plain reader of the same frames.

    python experiments/benchmark_decoding.py CLIP.mp4 ...             # clips of your own
    python experiments/benchmark_decoding.py --synthetic              # 240p to 4K, 1 s to 5 minutes, 5 codecs

Each reader returns the frames of a clip, 2 per second with a short side of 224 pixels, on one thread: `ours`
is `read_clip`; `decord` resizes in its own scaler; `pyav` decodes in order from the start (of a late
part from the key frame before it) and scales with FFmpeg's bicubic filter. Both get the list of frames. All
run in turns in this process; shown is the smallest CPU time of each. A reader gives the `same` frames if none
differs from ours by more than LEVELS of 255 on average, which two scalers may. With `--before`, an earlier
state of the repository is measured beside them.
"""

import importlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("clips", nargs="*", type=Path, help="video files")
    add("--synthetic", action="store_true", help="also encode clips and read them")
    add("--folder", type=Path, help="where encoded clips are kept for the next time (default: nowhere)")
    add(
        "--only",
        default="",
        metavar="TEXT",
        help="read those encoded clips alone that have TEXT in their name",
    )
    add("--before", type=Path, help="folder of an earlier state of the repository, to measure its read_clip")
    add("--turns", type=int, default=3, metavar="N", help="turns of every reader")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import av
import numpy as np
from measuring import cpu_name
from PIL import Image
from rich.table import Table

from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.versions import versions
from moss_vllm.video.clip import Sampling, choose_frames, read_clip

SAMPLING = Sampling(sample_fps=2.0, short_side_px=224, max_frames=180)
LEVELS = 6.0
X264 = {"preset": "veryfast", "bf": "3"}
HEVC = {"preset": "ultrafast", "x265-params": "bframes=3:log-level=none"}
VP9 = {"cpu-used": "8", "deadline": "realtime", "g": "128"}


class Part(NamedTuple):
    """A file, or its end from `start_s` on."""

    path: Path
    start_s: float = 0.0


class Made(NamedTuple):
    """A clip to encode: its height, seconds of 30 frames, the encoder, and where the part read starts."""

    name: str
    height: int
    seconds: float
    codec: str
    options: dict[str, str]
    start_s: float = 0.0


SYNTHETIC = (
    Made("240p-1s.mp4", 240, 1, "libx264", X264),
    Made("240p-10s.mp4", 240, 10, "libx264", X264),
    Made("240p-5min.mp4", 240, 300, "libx264", X264),
    Made("240p-5min-end.mp4", 240, 300, "libx264", X264, start_s=290),
    Made("480p-10s.avi", 480, 10, "mpeg4", {"g": "12"}),
    Made("480p-10s.webm", 480, 10, "libvpx-vp9", VP9),
    Made("480p-10s-hevc.mp4", 480, 10, "libx265", HEVC),
    Made("480p-10s-av1.mp4", 480, 10, "libsvtav1", {"preset": "12"}),
    Made("720p-1min.mkv", 720, 60, "libx264", X264),
    Made("720p-1min-end.mkv", 720, 60, "libx264", X264, start_s=50),
    Made("1080p-10s.mp4", 1080, 10, "libx264", X264),
    Made("1080p-10s-gop12.mp4", 1080, 10, "libx264", {**X264, "g": "12"}),
    Made("1080p-10s-gop60.webm", 1080, 10, "libvpx-vp9", {**VP9, "g": "60"}),
    Made("1080p-10s-hevc.mkv", 1080, 10, "libx265", HEVC),
    Made("4k-1s.mp4", 2160, 1, "libx264", X264),
    Made("4k-5s.mp4", 2160, 5, "libx264", X264),
    Made("4k-3s-hevc.mp4", 2160, 3, "libx265", HEVC),
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if args.turns < 1:
        parser.error("--turns takes 1 or more")
    if not args.clips and not args.synthetic:
        parser.error("name video files, or --synthetic")
    if args.before and not earlier_module(args.before):
        parser.error(f"--before {args.before} has no moss_vllm; name the folder of a checkout")
    readers: dict[str, Callable[[Part], np.ndarray]] = {"ours": read_ours}
    if args.before:
        readers["before"] = earlier_reader(args.before)
    readers |= {"decord": read_decord, "pyav": read_pyav}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [Part(path) for path in args.clips]
        parts += [make(folder, made) for made in SYNTHETIC if args.synthetic and args.only in made.name]
        for part in parts:
            rows.append(measure(part, readers, args.turns))
            say(json.dumps(rows[-1]), file=sys.stderr)
    result = {
        "command": shlex.join(
            ["python", "experiments/benchmark_decoding.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, 1 thread of them used to decode",
        "versions": versions(),
        "sampling": asdict(SAMPLING),
        "worst_ratio": max(row["ratio"] for row in rows),
        "clips": rows,
    }
    show(result, list(readers))
    if args.json:
        with whole_file(args.json) as part_file:
            part_file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(part: Part, readers: dict[str, Callable[[Part], np.ndarray]], turns: int) -> dict[str, Any]:
    """CPU seconds of each reader, whether it gives our frames, and our time over the cheapest that does."""
    seconds: dict[str, float] = {}
    same = {}
    ours = read_ours(part)
    for _ in range(turns):
        for name, read in readers.items():
            begun = time.process_time()
            try:
                frames = read(part)
            except Exception as error:  # a reader that fails on the clip does not compete
                say(f"{part.path.name}: {name} failed ({str(error).splitlines()[0][:80]})", file=sys.stderr)
                continue
            spent = time.process_time() - begun
            seconds[name] = min(seconds.get(name, spent), spent)
            same[name] = frames.shape == ours.shape and difference(frames, ours) <= LEVELS
    rivals = {name: seconds[name] for name in ("decord", "pyav") if same.get(name)}
    cheapest = min(rivals.values())
    with av.open(str(part.path)) as container:
        stream = container.streams.best("video")
        what = f"{stream.codec.canonical_name} {stream.width}x{stream.height}"
        length_s = (container.duration or 0) / 1e6
    row = {
        "clip": part.path.name + (f" from {part.start_s:g} s" if part.start_s else ""),
        "stored": what,
        "length_s": round(length_s, 2),
        "frames": len(ours),
        "cpu_s": {name: round(value, 4) for name, value in seconds.items()},
        "same": same,
        "ratio": round(seconds["ours"] / cheapest, 3),
    }
    return row | ({"ratio_before": round(seconds["before"] / cheapest, 3)} if "before" in seconds else {})


def difference(frames: np.ndarray, others: np.ndarray) -> float:
    """The largest mean difference of a frame, in levels."""
    return max(
        float(np.abs(one.astype(np.int16) - other).mean()) for one, other in zip(frames, others, strict=True)
    )


def read_ours(part: Part) -> np.ndarray:
    """`read_clip` of this checkout."""
    return read_clip(part.path, SAMPLING, start_s=part.start_s).frames


def earlier_module(root: Path) -> str:
    """The name of the module that reads clips in a checkout, "" where it has none."""
    places = {"moss_vllm.video.clip": "video/clip.py", "moss_vllm.data.video": "data/video.py"}
    return next((name for name, file in places.items() if (root / "moss_vllm" / file).is_file()), "")


def earlier_reader(root: Path) -> Callable[[Part], np.ndarray]:
    """`read_clip` of another checkout, imported beside this one's."""
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "moss_vllm"}
    sys.path.insert(0, str(root.absolute()))
    try:
        module = importlib.import_module(earlier_module(root))
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] == "moss_vllm"]:
            del sys.modules[name]
        sys.modules.update(mine)
    settings: dict[str, Any] = asdict(SAMPLING)
    if hasattr(module, "Sampling"):  # earlier checkouts take its fields one by one
        settings = {"sampling": module.Sampling(**settings)}
    return lambda part: module.read_clip(part.path, start_s=part.start_s, **settings).frames


_frames_to_read: dict[Part, tuple[np.ndarray, np.ndarray, tuple[int, int]]] = {}


def frames_to_read(part: Part) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """What plain readers get for free: the frames' indices and times, their height and width."""
    if part not in _frames_to_read:
        index, chosen, _ = choose_frames(str(part.path), SAMPLING, start_s=part.start_s)
        _frames_to_read[part] = chosen, index.frame_times_s[chosen], read_ours(part).shape[1:3]
    return _frames_to_read[part]


def read_decord(part: Part) -> np.ndarray:
    """decord at the indices, with its own resizing."""
    import decord

    chosen, _, (height, width) = frames_to_read(part)
    reader = decord.VideoReader(str(part.path), num_threads=1, width=width, height=height)
    return reader.get_batch(chosen.tolist()).asnumpy()


def read_pyav(part: Part) -> np.ndarray:
    """PyAV in order at the times, with FFmpeg's scaler."""
    _, times_s, (height, width) = frames_to_read(part)
    frames: list[np.ndarray] = []
    with av.open(str(part.path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        if part.start_s:
            container.seek(int(times_s[0] * 1e6))
        scaler = av.video.reformatter.VideoReformatter()
        for frame in container.decode(stream):
            if frame.time is not None and frame.time > times_s[len(frames)] - 1e-4:
                small = scaler.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
                frames.append(small.to_ndarray())
                if len(frames) == len(times_s):
                    break
    return np.stack(frames)


def make(folder: Path, made: Made) -> Part:
    """Encode a clip of moving texture, unless the file exists."""
    width, path = made.height * 16 // 9 // 2 * 2, folder / made.name
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        with av.open(str(unfinished), "w") as container:
            stream = container.add_stream(made.codec, rate=30, options=made.options)
            stream.width, stream.height, stream.pix_fmt = width, made.height, "yuv420p"
            for i, picture in enumerate(pictures(made.height, width, round(made.seconds * 30))):
                frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        unfinished.rename(path)
    return Part(path, made.start_s)


def pictures(height: int, width: int, count: int) -> Iterator[np.ndarray]:
    """A textured square that wanders over a gliding texture, as planes of YUV 4:2:0."""
    random = np.random.default_rng(0)

    def texture(rows: int, columns: int) -> np.ndarray:
        coarse = random.integers(16, 236, (rows // 16 + 2, columns // 16 + 2), np.uint8)
        smooth = Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)
        return np.asarray(smooth) // 2 + random.integers(0, 24, (rows, columns), np.uint8) + 40

    ground, colours = texture(height, width), texture(height // 2, width)
    side, square = height // 3, texture(height // 3, height // 3)
    for i in range(count):
        luma = np.roll(ground, (i // 2, 2 * i), (0, 1))
        top, left = 3 * i % (height - side), 5 * i % (width - side)
        luma[top : top + side, left : left + side] = square
        yield np.concatenate([luma, np.roll(colours, i // 2 * 2, 1)])


def show(result: dict[str, Any], readers: list[str]) -> None:
    """Print the table."""
    table = Table(
        "clip", "stored", "frames", *(f"{name} ms" for name in readers), "same", "ratio", "before", box=None
    )
    for row in result["clips"]:
        spent = (f"{1e3 * row['cpu_s'][name]:.0f}" if name in row["cpu_s"] else "-" for name in readers)
        same = " ".join(
            name for name, is_same in row["same"].items() if is_same and name in ("decord", "pyav")
        )
        before = f"{row['ratio_before']:.2f}" if "ratio_before" in row else "-"
        table.add_row(
            row["clip"], row["stored"], str(row["frames"]), *spent, same, f"{row['ratio']:.2f}", before
        )
    Screen(width=120).print(table)
    say(f"worst ratio {result['worst_ratio']:.2f}")


if __name__ == "__main__":
    main()
