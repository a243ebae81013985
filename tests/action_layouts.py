"""Tiny copies of each action-recognition dataset's real layout: true file names and formats, made-up clips.

write_layout("ssv2", root)  # train: 4 clips, test: 2, of 2 or 3 classes
"""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

DATASETS = ("ssv1", "ssv2", "diving48", "gym99", "gym288", "k400", "list")
COUNTS = {"train": 4, "test": 2}
# A short run: of what the protocols say only the sizes are changed.
SMALL = {
    "variant": "mini",
    "size_px": 84,
    "frames": 4,
    "steps": 2,
    "clips_a_step": 2,
    "batch_size": 2,
}
SMALL |= {"workers": 0, "tracker": "none", "eval_every": 1}
TINY = {**SMALL, "data": "list", "size_px": 28}
# In the unsorted order of the real file, one with a comma.
SSV_NAMES = (
    "Turning the camera right while filming something",
    "Holding something",
    "Putting something that can't roll onto a slanted surface, so it slides down",
    "Turning the camera left while filming something",
)
_SSV_LABELS = (3, 2, 1, 0, 3, 2)  # of the sorted names
# Classes of FineGym that share a name; of gym288 as numbered by the authors, with names made up.
REPEATED = {
    "gym99": {58: "(BB) salto backward tucked", 70: "(BB) salto backward tucked"},
    "gym288": {
        first + more: f"(BB) salto {first}, tucked"
        for first, apart in ((180, 36), (181, 36), (185, 37))
        for more in (0, apart)
    },
}


def write_layout(data: str, root: Path) -> None:
    """Write one dataset below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    {
        "ssv1": write_ssv1,
        "ssv2": write_ssv2,
        "diving48": write_diving48,
        "gym99": lambda root: write_finegym(root, 99),
        "gym288": lambda root: write_finegym(root, 288),
        "k400": write_k400,
        "list": write_list,
    }[data](root)


def moving_square(seed: int, frames: int = 10, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of a bright square that moves right over a dark pattern, faster with `seed`."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 90, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    clip = np.repeat(pattern[None], frames, 0)
    for t in range(frames):
        left = (4 + t * (1 + seed % 4)) % (width - 12)
        clip[t, 8 + seed % 16 : 24 + seed % 16, left : left + 12] = 230
    return clip


def write_video(path: Path, clip: np.ndarray, fps: int = 12) -> None:
    """A webm (vp9) or mp4 (h264) file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, options = ("libx264", {"preset": "ultrafast"})
    if path.suffix == ".webm":
        codec, options = ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for frame in clip:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def write_frames(folder: Path, clip: np.ndarray, name: str = "{:05d}.jpg") -> None:
    """A folder of numbered jpg files, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(clip, 1):
        Image.fromarray(frame).save(folder / name.format(number), quality=95)


def write_ssv1(root: Path) -> None:
    """Unsorted labels, `id;name` rows, folders of five-digit jpg files of two lengths."""
    prefix, classes = "something-something-v1", sorted(SSV_NAMES)
    (root / f"{prefix}-labels.csv").write_text("\n".join(SSV_NAMES) + "\n")
    rows = [f"{100218 + i};{classes[label]}" for i, label in enumerate(_SSV_LABELS)]
    (root / f"{prefix}-train.csv").write_text("\n".join(rows[:4]) + "\n")
    (root / f"{prefix}-validation.csv").write_text("\n".join(rows[4:]) + "\n")
    (root / f"{prefix}-test.csv").write_text("9001\n9002\n")
    for i in range(6):
        frames = 5 if i == 1 else 12  # a video shorter than a clip
        write_frames(root / f"20bn-{prefix}" / str(100218 + i), moving_square(i, frames, 50, 88))


def write_ssv2(root: Path) -> None:
    """The newer official names: a folder `labels` of json files, webm videos."""
    classes = sorted(SSV_NAMES)
    folder = root / "labels"
    folder.mkdir()
    table = {name: str(index) for index, name in enumerate(classes)}
    (folder / "labels.json").write_text(json.dumps(table, indent=2))
    rows = [
        {
            "id": str(45 + i),
            "label": classes[label].replace("something", "a cup").lower(),
            "template": classes[label].replace("something", "[something]"),
            "placeholders": ["a cup"] * classes[label].count("something"),
        }
        for i, label in enumerate(_SSV_LABELS)
    ]
    (folder / "train.json").write_text(json.dumps(rows[:4]))
    (folder / "validation.json").write_text(json.dumps(rows[4:]))
    (folder / "test.json").write_text(json.dumps([{"id": "9001"}]))
    (folder / "test-answers.csv").write_text("9001;Holding something\n")
    for i in range(6):
        write_video(root / "20bn-something-something-v2" / f"{45 + i}.webm", moving_square(i))


def write_diving48(root: Path) -> None:
    """V2: 48 classes of four words, of which few occur; some ids begin with a hyphen."""
    turns = [f"{10 + 5 * i}som" for i in range(12)]
    table = [
        [side, turn, "05Twis", "FREE"] for side in ("Back", "Forward", "Inward", "Reverse") for turn in turns
    ]
    (root / "Diving48_vocab.json").write_text(json.dumps(table))
    names = [f"-mmq0PT-u8k_{155 + i:05d}" for i in range(6)]
    rows = [
        {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 48}
        for name, label in zip(names, (0, 47, 12, 0, 12, 0), strict=True)
    ]
    (root / "Diving48_V2_train.json").write_text(json.dumps(rows[:4]))
    (root / "Diving48_V2_test.json").write_text(json.dumps(rows[4:]))
    for i, name in enumerate(names):
        write_video(root / "rgb" / f"{name}.mp4", moving_square(i))


def write_finegym(root: Path, count: int) -> None:
    """v1.1: lists separated by spaces, categories with uneven spacing."""
    events = {1: "VT", 21: "FX", 31: "BB", 41: "UB"}
    numbers = np.resize(list(events), count).tolist()
    names = [
        f"({events[number]}) element {label}, {label % 4} turn; stretched"
        for label, number in enumerate(numbers)
    ]
    for label, name in REPEATED[f"gym{count}"].items():
        names[label] = name
    lines = [
        f"Clabel:{' ' * (1 + n % 3)}{n}; set: {number};{' ' * (n % 2)} Glabel: {n + 1}; {name}"
        for n, (number, name) in enumerate(zip(numbers, names, strict=True))
    ]
    (root / f"gym{count}_categories.txt").write_text("\n".join(lines) + "\n")
    (root / "set_categories.txt").write_text(
        "".join(f"set: {number}; {event}-set\n" for number, event in events.items())
    )
    clips = [f"A0xAXXysHUo_E_002184_002237_A_{35 + i:04d}_{36 + i:04d}" for i in range(6)]
    rows = [f"{name} {label}" for name, label in zip(clips, (count - 1, 0, 7, 0, 7, 0), strict=True)]
    (root / f"gym{count}_train_element_v1.1.txt").write_text("\n".join(rows[:4]) + "\n")
    (root / f"gym{count}_val_element.txt").write_text("\n".join(rows[4:]) + "\n")
    for i, name in enumerate(clips):
        write_video(root / "subactions" / f"{name}.mp4", moving_square(i))


def write_k400(root: Path) -> None:
    """Quoted labels with spaces; class folders with spaces for train, with underscores or none for val."""
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    clips = [
        ("testifying", "---QUuC4vJs", 84, 94),
        ("air drumming", "--3ouPhoy2A", 20, 30),
        ("abseiling", "_4-0ddGB0rw", 4, 14),
        ("air drumming", "tdpHu69TU5w", 4, 14),
        ("air drumming", "0wR5jVB-WPk", 417, 427),
        ("testifying", "1Px6ybRnBzk", 0, 10),
    ]
    rows = [
        f"{label if ' ' not in label else chr(34) + label + chr(34)},{video},{start},{end},{{}},0\n"
        for label, video, start, end in clips
    ]
    (root / "train.csv").write_text(header + "".join(row.format("train") for row in rows[:4]))
    (root / "val.csv").write_text(header + "".join(row.format("val") for row in rows[4:]))
    folders = ["train/testifying", "train/air drumming", "train/abseiling", "train/air drumming"]
    folders += ["val/air_drumming", "val"]
    for i, ((_, video, start, end), folder) in enumerate(zip(clips, folders, strict=True)):
        write_video(root / folder / f"{video}_{start:06d}_{end:06d}.mp4", moving_square(i, frames=24), 30)


def write_list(root: Path) -> None:
    """The authors' lists: folders of `img_00001.jpg` for train, videos for test; names without commas."""
    classes = sorted(SSV_NAMES)
    table = [f"{index},{name.replace(',', '')}" for index, name in enumerate(classes)]
    (root / "sth_labels.csv").write_text("\n".join(["id,name", *table]) + "\n")
    train = [f"some class/clip {i} 12 {_SSV_LABELS[i]}" for i in range(4)]
    (root / "train.txt").write_text("\n".join(train) + "\n")
    (root / "val.txt").write_text(f"clip 4.mp4 {_SSV_LABELS[4]}\nclip_5.webm {_SSV_LABELS[5]}\n")
    for i in range(4):
        write_frames(root / "some class" / f"clip {i}", moving_square(i, 12), "img_{:05d}.jpg")
    write_video(root / "clip 4.mp4", moving_square(4))
    write_video(root / "clip_5.webm", moving_square(5))
