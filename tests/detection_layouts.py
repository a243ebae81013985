"""A tiny THUMOS-14 in its real layout: true names and formats, made-up actions, files that hold no video.

write_thumos(root)  # 2 videos to train on, 3 to test with, 2 more that are removed
"""

import json
from pathlib import Path

CLASSES = ("CliffDiving", "CricketShot", "Diving")
VALIDATION = ("video_validation_0000051", "video_validation_0000052")
TEST = ("video_test_0000004", "video_test_0000006", "video_test_0000011")
REMOVED = ("video_test_0000270", "video_test_0001292")


def annotations(*rows):
    return [{"segment": [start, end], "label": label} for start, end, label in rows]


def thumos():
    """The content of thumos_14_anno.json."""
    shot, dive, cliff = "CricketShot", "Diving", "CliffDiving"
    actions = {
        VALIDATION[0]: annotations((1.0, 3.0, shot), (0.0, 9.0, "Ambiguous")),
        VALIDATION[1]: annotations((2.0, 5.5, dive), (2.0, 5.5, cliff), (30.0, 41.5, dive)),
        TEST[0]: annotations((0.2, 1.1, shot), (5.0, 7.0, shot), (0.2005, 1.0995, shot), (3.0, 3.0, dive)),
        TEST[1]: annotations((4.0, 5.0, cliff), (4.0, 5.0, dive), (9.0, 8.0, dive)),
        TEST[2]: annotations((1.0, 2.0, "Ambiguous"), (2.5, 4.5, shot)),
        REMOVED[0]: annotations((1.0, 2.0, shot)),
        REMOVED[1]: annotations((1.0, 2.0, "Ambiguous")),
    }
    return {
        "database": {
            name: {
                "subset": "training" if name in VALIDATION else "validation",
                "duration": 40.0,
                "frame": 1199,
                "annotations": rows,
                "url": "other keys are free",
            }
            for name, rows in actions.items()
        }
    }


def as_actionformer(content):
    """The same as ActionFormer's thumos14.json."""
    database = {}
    for name, row in content["database"].items():
        kept = {key: row[key] for key in ("duration", "annotations")}
        subset = {"training": "Validation", "validation": "Test"}[row["subset"]]
        database[name] = {"subset": subset, "fps": 29.97, **kept}
    return {"version": "Thumos14-30fps", "database": database}


def write_thumos(root: Path, content=None) -> Path:
    """Write OpenTAD's layout, and return the annotation file."""
    file = root / "annotations" / "thumos_14_anno.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content or thumos()))
    (file.parent / "category_idx.txt").write_text("\n".join(CLASSES) + "\n")
    videos = root / "raw_data" / "video"
    videos.mkdir(parents=True)
    for name in (*VALIDATION, *TEST):
        (videos / f"{name}.mp4").touch()
    return file
