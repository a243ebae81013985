"""Annotation, videos and prediction files of temporal action detection.

They are made in a small THUMOS-14, and told by the readers themselves.
"""

import json
import shutil
from functools import partial

from detection_layouts import CLASSES, TEST, VALIDATION

from faults import engine
from moss_vllm.commands.scripts import timeline
from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.detection.predictions import read_predictions


def fault(title):
    return engine.fault(f"detection: {title}", ValueError, ground="detection_ground")


def change(ground, edit):
    content = json.loads(ground.file.read_text())
    edit(content["database"])
    ground.file.write_text(json.dumps(content))
    return ground.read()


def of_the_first(**values):
    return lambda database: database[TEST[0]].update(values)


def with_segment(segment, label="Diving"):
    return of_the_first(annotations=[{"segment": segment, "label": label}])


def in_frames(database):
    for video in database.values():
        for row in video["annotations"]:
            row["segment"] = [30 * second for second in row["segment"]]


def two_at_once(database):
    database[TEST[0]]["duration"] = -1
    database[TEST[1]]["annotations"][0]["label"] = "Golf"


def in_two_forms(database):
    for name in ("vid\u00e9o", "vide\u0301o"):
        database[name] = database[TEST[0]]


for title, edit in (
    ("no duration", lambda database: database[TEST[0]].pop("duration")),
    ("a frame count that cannot be", of_the_first(frame=10)),
    ("a subset that no video has", lambda database: [one.update(subset="val") for one in database.values()]),
    ("more frames than a video has", of_the_first(duration=1e9, frame=30_000_000_000)),
    ("a segment far beyond its video", with_segment([1.0, 1e300])),
    ("a name in two Unicode forms", in_two_forms),
    ("no list of annotations", of_the_first(annotations=None)),
    ("a segment of one time", with_segment([1.0])),
    ("a segment that is NaN", with_segment([1.0, float("nan")])),
    ("a segment before its video", with_segment([-1.0, 2.0])),
    ("a class that is not in category_idx.txt", with_segment([1.0, 2.0], "Golf")),
    ("times in frames", in_frames),
    ("no action", lambda database: [database[name].update(annotations=[]) for name in TEST]),
    ("two bad rows", two_at_once),
):

    @fault(title)
    def _(ground, edit=edit):
        return change(ground, edit)


@fault("no folder")
def _(ground):
    return partial(read_detection, "thumos14", ground.tmp / "gone", "test")


@fault("broken JSON")
def _(ground):
    ground.file.write_text('{"database": {')
    return ground.read()


@fault("a video that is listed twice")
def _(ground):
    text = ground.file.read_text()
    ground.file.write_text(text.replace(VALIDATION[1], VALIDATION[0]))
    return ground.read()


@fault("a video is missing")
def _(ground):
    (ground.videos / f"{TEST[1]}.mp4").unlink()
    return ground.read()


@fault("no video is there")
def _(ground):
    return ground.read(videos=[ground.file.parent])


@fault("a video and a folder of its name")
def _(ground):
    (ground.videos / TEST[1]).mkdir()
    return ground.read()


GOOD = {"segment": [1.0, 2.5], "label": "Diving", "score": 0.5}
for title, content in (
    ("no results", {"detections": {}}),
    ("a video without a list", {"results": {TEST[0]: GOOD}}),
    ("an unknown class", {"results": {TEST[0]: [GOOD, {**GOOD, "label": "Golf"}]}}),
    ("a reversed segment", {"results": {TEST[0]: [GOOD, {**GOOD, "segment": [2.5, 1.0]}]}}),
    ("a score that is NaN", {"results": {TEST[0]: [GOOD, {**GOOD, "score": float("nan")}]}}),
    ("a score over 1", {"results": {TEST[0]: [GOOD, {**GOOD, "score": 50.0}]}}),
    ("ids of another project", {"results": {f"v_{TEST[0]}": [GOOD]}}),
    ("no score", {"results": {TEST[0]: [{"segment": [1.0, 2.5], "label": "Diving"}]}}),
):

    @fault(f"predictions with {title}")
    def _(ground, content=content):
        (ground.tmp / "found.json").write_text(json.dumps(content))
        return partial(read_predictions, ground.tmp / "found.json", CLASSES, TEST)


def fault_of_a_timeline(title, name=TEST[0]):
    """Add damage to a test's folder, of which a video is then drawn."""

    def add(damage):
        @engine.fault(f"timeline.py: {title}", 1, ground="detection_ground")
        def _(ground):
            folder = ground.tmp / "test"
            folder.mkdir()
            (folder / "predictions.json").write_text(json.dumps({"results": {TEST[0]: [GOOD]}}))
            about = {"classes": CLASSES, "split": {"root": str(ground.tmp / "thumos")}}
            (folder / "result.json").write_text(json.dumps(about))
            return partial(timeline.main, [str(damage(folder) or folder), "--video", name])

        return damage

    return add


@fault_of_a_timeline("a video that is not in the test", "video_test_0000270")
def _(folder):
    pass


@fault_of_a_timeline("a file of predictions alone")
def _(folder):
    return folder / "predictions.json"


@fault_of_a_timeline("a folder without result.json")
def _(folder):
    (folder / "result.json").unlink()


@fault_of_a_timeline("a folder without predictions")
def _(folder):
    (folder / "predictions.json").unlink()


@fault_of_a_timeline("a test of other classes")
def _(folder):
    file = folder / "result.json"
    file.write_text(file.read_text().replace(CLASSES[0], "Golf"))


@fault_of_a_timeline("a result.json that no test wrote")
def _(folder):
    (folder / "result.json").write_text('{"classes": 3, "split": {"split": "train"}}')


@fault_of_a_timeline("data that are gone")
def _(folder):
    shutil.rmtree(folder.parent / "thumos")
