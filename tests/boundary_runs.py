"""Runs of recipes/boundaries.py on a small Kinetics-GEBD and TAPOS, and what is odd in the real ones."""

import json
import shutil

from boundary_layouts import INSTANCES, TEST, TRAIN, tapos, write_tapos
from launching import as_flags
from tiny_boundaries import write_moving

SMALL = {"data": "kinetics_gebd", "variant": "mini", "frames": 20, "size_px": 32, "workers": 0, "steps": 2}
SMALL |= {"temporal_options": "{window: [3, 3, 3], d_hidden: 8, d_similarity: 4}", "tracker": "none"}
SMALL |= {"clips_a_step": 2, "log_every": 1}
WITHOUT_MOSS = {"temporal": "none", "temporal_options": None}


def flags(root, out, **settings):
    """The recipe's words; None leaves a setting out."""
    given = {**SMALL, "root": root, "out": out, **settings}
    return as_flags({name: value for name, value in given.items() if value is not None})


def write_odd_kinetics(root):
    """One clip to train on has other times in its name; one to test with lost its last frames."""
    file = write_moving(root)
    images = root / "images"
    (images / "train" / f"{TRAIN[0]}_000003_000013").rename(images / "train" / f"{TRAIN[0]}_000003_000014")
    for number in range(81, 101):
        next((images / "val" / f"{TEST[2]}_000003_000013").glob(f"*{number}.*")).unlink()
    return file


def write_odd_tapos(root):
    """In the challenge's folders; an instance without a boundary, and one whose frames are gone."""
    file = write_tapos(root)
    content = tapos()
    (video,) = (name for name, rows in content.items() if any(r["subset"] == "val" for r in rows.values()))
    content[video]["s00009_0_000_5_000"] = {"subset": "val", "total_frames": 125, "substages": [0, 124]}
    file.write_text(json.dumps(content))
    for part, names in INSTANCES.items():
        for name in names:
            group, instance = name.split("_s0")
            target = root / f"{part}_split" / group / f"s0{instance}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / "images" / part / name, target)
    shutil.rmtree(target)
    return file
