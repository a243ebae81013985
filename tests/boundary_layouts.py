"""A tiny Kinetics-GEBD and TAPOS in their real layouts: true names and formats, made-up boundaries.

write_kinetics(root)  # 2 clips to train on, 3 to test with, frames in EfficientGEBD's folders
write_tapos(root)     # 2 instances to train on, 2 to test with
"""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "golden_boundaries"
TRAIN = ("trainAAAAA1", "trainBBBBB2")
TEST = ("testCCCCCC3", "testDDDDDD4", "testEEEEEE5")
GROUND_TRUTH = "k400_mr345_{}_min_change_duration0.3.pkl"
INSTANCES = {
    "train": ("yt_made_up-1_s00001_0_100_7_931", "yt_made_up-1_s00002_8_000_20_500"),
    "val": ("yt_made_up-2_s00004_0_500_6_500", "yt_made_up-2_s00005_7_000_9_400"),
}


def golden(name):
    """The content of a json of values."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def record(video_id, *raters, consistency=None, frames=100, fps=10.0, group="air_drumming"):
    """A record of the ground-truth file; raters have boundaries in seconds."""
    consistency = consistency or [0.5] * len(raters)
    path = f"{group}/{video_id}_000003_000013"
    return {
        "num_frames": frames,
        "path_video": f"{path}.mp4",
        "fps": fps,
        "video_duration": frames / fps,
        "path_frame": path,
        "f1_consis": consistency,
        "f1_consis_avg": sum(consistency) / len(consistency),
        "substages_myframeidx": [[float(int(time * fps)) for time in times] for times in raters],
        "substages_timestamps": [list(times) for times in raters],
    }


def kinetics():
    """The records of each part: several raters, a single one, and a clip whose raters disagree."""
    return {
        "train": {
            TRAIN[0]: record(TRAIN[0], [1.0, 4.0], [1.2, 4.5, 8.0], [4.2], consistency=[0.4, 0.7, 0.6]),
            TRAIN[1]: record(TRAIN[1], [5.0]),
        },
        "val": {
            TEST[0]: record(TEST[0], [2.0, 6.0], [2.1, 6.2, 9.0], consistency=[0.5, 0.6]),
            TEST[1]: record(TEST[1], [3.0], [], consistency=[0.2, 0.1]),
            TEST[2]: record(TEST[2], [4.0, 7.5], group="riding a bike"),
        },
    }


def with_scalars(records):
    """The same, with frame numbers as NumPy's scalars, as the notebook writes them."""
    key = "substages_myframeidx"
    return {
        name: {**one, key: [[np.float64(frame) for frame in some] for some in one[key]]}
        for name, one in records.items()
    }


def write_pickle(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_frames_of(folder, count=20, name="frame{}.jpg", size=(32, 24)):
    """Small pictures of one colour each, numbered from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        Image.new("RGB", size, (5 * number % 256, 0, 99)).save(folder / name.format(number))


def write_kinetics(root: Path, records=None) -> Path:
    """Write EfficientGEBD's layout, and return the ground truth of the test."""
    for part, some in (records or kinetics()).items():
        file = write_pickle(root / GROUND_TRUTH.format(part), with_scalars(some))
        for one in some.values():
            write_frames_of(root / "images" / part / Path(one["path_frame"]).name)
    return file


def tapos():
    """The content of tapos_annotation.json."""
    content = {}
    for part, names in INSTANCES.items():
        for name in names:
            video, instance = name.split("_s0")[0], "s0" + name.split("_s0")[1]
            row = {"subset": part, "total_frames": 200, "shot_timestamps": [3.0, 60.0]}
            content.setdefault(video, {})[instance] = {**row, "substages": [0, 51, 120, 199]}
    return content


def write_tapos(root: Path) -> Path:
    """Write tapos_annotation.json and frames in EfficientGEBD's layout, and return the file."""
    for part, names in INSTANCES.items():
        for name in names:
            write_frames_of(root / "images" / part / name)
    file = root / "tapos_annotation.json"
    file.write_text(json.dumps(tapos()))
    return file
