"""Ground truth, clips and prediction files of event boundary detection.

They are made in a small Kinetics-GEBD and TAPOS, and told by the readers themselves.
"""

import json
import pickle
import shutil
from functools import partial

from boundary_layouts import (
    GROUND_TRUTH,
    TEST,
    golden,
    kinetics,
    record,
    tapos,
    write_frames_of,
    write_pickle,
)

from faults import engine
from faults.engine import cut, hostile
from moss_vllm.boundaries.predictions import read_predictions
from moss_vllm.boundaries.scores import score_boundaries
from moss_vllm.data.boundaries.on_disk import count_files

CLIP = f"{TEST[0]}_000003_000013"


def fault(title):
    return engine.fault(f"boundaries: {title}", ValueError, ground="boundary_ground")


# ---- pickles


def call_code(ground):
    ground.file.write_bytes(hostile(ground))


def a_list(ground):
    write_pickle(ground.file, list(kinetics()["val"].values()))


def a_set(ground):
    write_pickle(ground.file, {TEST[0]: {1.0, 2.0}})


for title, damage in (
    ("a pickle that calls code", call_code),
    ("a pickle with a set", a_set),
    ("a pickle that is cut short", lambda ground: cut(ground.file, 100)),
    ("a pickle of Python 2", lambda ground: ground.file.write_bytes(pickle.dumps({TEST[0]: 1}, 0))),
    ("a pickle of a list that holds itself",
     lambda ground: ground.file.write_bytes(b"\x80\x04]\x94h\x00a.")),
    ("a pickle of a list", a_list),
    ("a page of a download that failed", lambda ground: ground.file.write_text("<!DOCTYPE html>")),
):  # fmt: skip

    @fault(title)
    def _(ground, damage=damage):
        damage(ground)
        return ground.read()


# ---- records


def with_records(ground, edit):
    records = kinetics()["val"]
    edit(records)
    write_pickle(ground.file, records)
    return ground.read()


def of_the_first(**values):
    return lambda records: records[TEST[0]].update(values)


def in_frames(records):
    for one in records.values():
        one["substages_timestamps"] = one["substages_myframeidx"]


def two_at_once(records):
    records[TEST[0]]["fps"] = 0
    records[TEST[2]]["substages_timestamps"] = None


for title, edit in (
    ("no frame count", of_the_first(num_frames=None)),
    ("no list of boundaries", of_the_first(substages_timestamps=None)),
    ("a boundary that is NaN", of_the_first(substages_timestamps=[[2.0, float("nan")], [2.1, 6.2, 9.0]])),
    ("a rater without a consistency", of_the_first(f1_consis=[0.5])),
    ("other numbers of boundaries in seconds and frames", of_the_first(substages_timestamps=[[2.0], [2.1]])),
    ("a path that leaves its folder", of_the_first(path_frame="air_drumming/..")),
    ("boundaries in frames", in_frames),
    ("no boundary", lambda records: [one.update(record(name, [])) for name, one in records.items()]),
    ("two bad records", two_at_once),
):  # fmt: skip

    @fault(title)
    def _(ground, edit=edit):
        return with_records(ground, edit)


@fault("a raw annotation with a mark of another form")
def _(ground):
    raw = golden("ground_truth")["raw"]
    raw["rulesAAAAA1"]["substages_timestamps"][1][2] = [2.5, "EventChange"]
    ground.file.unlink()
    write_pickle(ground.file.with_name("k400_val_raw_annotation.pkl"), raw)
    return ground.read()


@fault("no ground truth")
def _(ground):
    ground.file.rename(ground.file.with_name(GROUND_TRUTH.format("test")))
    return ground.read()


@fault("an instance of TAPOS with another name")
def _(ground):
    content = tapos()
    content["yt_made_up-2"] = {"instance 4": {"subset": "val"}}
    ground.instances.write_text(json.dumps(content))
    return ground.read_tapos()


@fault("own json without a rate")
def _(ground):
    clip = {"subset": "validation", "duration": 4.0, "boundaries_s": [[1.0]]}
    ground.file.with_name("mine.json").write_text(json.dumps({"database": {"a": clip}}))
    return ground.read_own()


@fault("own json with one list for all raters")
def _(ground):
    clip = {"subset": "validation", "duration": 4.0, "fps": 25.0, "boundaries_s": [1.0, 2.5]}
    ground.file.with_name("mine.json").write_text(json.dumps({"database": {"a": clip}}))
    return ground.read_own()


# ---- clips


@fault("a clip is missing")
def _(ground):
    shutil.rmtree(ground.clips / CLIP)
    return ground.read()


@fault("no clip is there")
def _(ground):
    return ground.read(videos=[ground.file.parent / "images" / "train"])


@fault("a clip and a folder of its name")
def _(ground):
    (ground.clips / f"{CLIP}.mp4").touch()
    return ground.read()


@fault("a frame is missing")
def _(ground):
    write_frames_of(ground.clips / CLIP)
    (ground.clips / CLIP / "frame7.jpg").unlink()
    return partial(count_files, ground.clips / CLIP)


# ---- predictions

for title, content, threshold in (
    ("seconds that are frame numbers", {TEST[0]: [20, 61], TEST[2]: [42, 75]}, None),
    ("a time that is no number", {TEST[0]: [2.0, "6.0"]}, None),
    ("scores without a threshold", {TEST[0]: {"frame_idx": [1, 2], "scores": [0.1, 0.7]}}, None),
    ("a score over 1", {TEST[0]: {"frame_idx": [1, 2], "scores": [0.1, 7.0]}}, 0.3),
    ("more frames than scores", {TEST[0]: {"frame_idx": [1, 2], "scores": [0.1]}}, 0.3),
    ("the scores of two heads", {TEST[0]: {"frame_idx": [1], "scores": [[0.1], [0.2]]}}, 0.3),
):

    @fault(f"predictions with {title}")
    def _(ground, content=content, threshold=threshold):
        path = ground.tmp / "found.json"
        path.write_text(json.dumps(content))
        return partial(read_predictions, path, ground.read()(), threshold=threshold)


@fault("predictions of another split")
def _(ground):
    return partial(score_boundaries, ground.read()(), {"trainAAAAA1": [2.0]})
