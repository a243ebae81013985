"""Checkpoints, data and files of eval/boundaries.py.

A flag's value may hold <tmp>, with the checkpoint <tmp>/run/best and the data set <tmp>/kinetics.
"""

import json
import shutil

import torch
from boundary_layouts import GROUND_TRUTH, TEST, TRAIN, write_pickle
from safetensors.torch import load_file, save_file
from tiny_detector import edit_run

from faults import engine
from faults.engine import cut, edit_weights, hostile, to_nan
from moss_vllm.boundaries.checkpoint import WEIGHTS_FILE

STORE = "run/best-test/answers/00-of-01.jsonl"
BIAS = "head.classifier.out.bias"
FOUND = {TEST[0]: [2.0, 6.0], TEST[1]: [3.0], TEST[2]: [4.0]}


def fault(title, kind=1, **more):
    return engine.fault(f"eval/boundaries.py: {title}", kind, ground="boundary_test_ground", **more)


def nothing(ground):
    pass


# ---- flags

FILE = {"ckpt": None, "predictions": "<tmp>/found.json", "device": None, "workers": None}
for title, flags in (
    ("neither a checkpoint nor predictions", {"ckpt": None}),
    ("both a checkpoint and predictions", {"predictions": "<tmp>/found.json"}),
    ("a limit without a cache", {"cache_gib": 1.0}),
    ("a threshold over 1", {"threshold": 30}),
    ("an unknown rule of F1", {"rule": "loveu"}),
    ("an unknown rule of peaks", {"peaks": "highest"}),
    ("flags of a model with predictions", {**FILE, "workers": 0, "device": "cpu", "videos": "<tmp>/clips"}),
):

    @fault(title, 2)
    def _(ground, flags=flags):
        return ground.test(**flags)


# ---- checkpoints


def as_other(name, recipe):
    """A checkpoint of another task, by the name of its weights and its command."""

    def change(ground):
        edit_run(ground.best, command=f"recipes/{recipe} --seed 1")
        (ground.best / WEIGHTS_FILE).unlink()
        save_file({"norm.weight": torch.ones(3)}, ground.best / name)

    return change


def empty(ground):
    shutil.rmtree(ground.best)
    ground.best.mkdir()


def weights(change, pick=BIAS):
    return lambda ground: edit_weights(ground.best / WEIGHTS_FILE, change, pick)


def left_over(ground):
    file = ground.best / WEIGHTS_FILE
    save_file({**load_file(file), "head.extra": torch.zeros(2)}, file)


def as_pickle(ground):
    (ground.best / WEIGHTS_FILE).write_bytes(hostile(ground))


def record(**values):
    return lambda ground: edit_run(ground.best, **values)


def write_record(text):
    return lambda ground: (ground.best / "run.json").write_text(text)


def without_step(ground):
    run = json.loads((ground.best / "run.json").read_text())
    del run["step"]
    (ground.best / "run.json").write_text(json.dumps(run))


for title, damage, flags in (
    ("no checkpoint", nothing, {"ckpt": "<tmp>/gone"}),
    ("an empty folder", empty, {}),
    ("the run's folder", nothing, {"ckpt": "<tmp>/run"}),
    ("a checkpoint of a classifier", as_other("classifier.safetensors", "action_recog.py"), {}),
    ("a checkpoint of a detector", as_other("detector.safetensors", "detection.py"), {}),
    ("a checkpoint of a Video-LLM", as_other("adapter_model.safetensors", "favor_lora.py"), {}),
    ("weights that are a pickle", as_pickle, {}),
    ("weights that are cut short", lambda ground: cut(ground.best / WEIGHTS_FILE, 10), {}),
    ("weights of another shape", weights(lambda tensor: torch.ones(7)), {}),
    ("a weight that is missing", weights(lambda tensor: None), {}),
    ("a weight left over", left_over, {}),
    ("weights that are not finite", weights(to_nan), {}),
    ("weights with MOSS, a record without", record(model={"temporal": "none", "temporal_options": {}}), {}),
    ("a broken record", write_record("{"), {}),
    ("a record of something else", write_record("{}"), {}),
    ("a record of a later version", record(model={"depth": 3}), {}),
    ("a record without a step", without_step, {}),
    ("a record of other clips", record(clips={"frames": "100"}), {}),
    ("a record of a root that is none", record(settings={"root": 3}), {}),
    ("unknown data", nothing, {"data": "soccernet"}),
    ("no root", record(settings={"root": None}), {"root": None}),
):

    @fault(title, 2 if title == "unknown data" else 1)
    def _(ground, damage=damage, flags=flags):
        damage(ground)
        return ground.test(**flags)


@fault("weights whose outputs are not finite", leaves=(STORE,))
def _(ground):
    edit_weights(ground.best / WEIGHTS_FILE, lambda tensor: tensor + 3e38, "head.project.weight")
    return ground.test()


# ---- data


def break_clips(ground):
    for clip in list(ground.clips.iterdir()):
        if clip.is_dir():
            shutil.rmtree(clip)
        else:
            clip.unlink()
        clip.with_suffix(".mp4").write_bytes(b"no video")


@fault("no clip can be read", leaves=(STORE,))
def _(ground):
    break_clips(ground)
    return ground.test()


def own_json(ground):
    row = {"subset": "validation", "duration": 10.0, "fps": 10.0, "boundaries_s": [[2.0]]}
    content = json.dumps({"database": {TEST[0]: row}})
    (ground.file.parent / "annotations.json").write_text(content)


for title, damage, flags in (
    ("a clip is missing", lambda ground: shutil.rmtree(ground.clip), {}),
    ("a subset without clips", own_json, {"subset": "test", "data": "json"}),
    ("no folder of clips", nothing, {"videos": "<tmp>/gone"}),
    ("no annotation", nothing, {"annotation": "<tmp>/gone.pkl"}),
    ("an annotation that calls code", lambda ground: ground.file.write_bytes(hostile(ground)), {}),
):

    @fault(title)
    def _(ground, damage=damage, flags=flags):
        damage(ground)
        return ground.test(**flags)


# ---- going on


@fault("a folder with the test of other weights")
def _(ground):
    ground.test()()
    edit_weights(ground.best / WEIGHTS_FILE, lambda tensor: tensor + 1, BIAS)
    return ground.test()


@fault("a line that is none")
def _(ground):
    ground.test()()
    (ground.tmp / STORE).open("a").write("no line\n")
    return ground.test()


@fault("a clip that lost a frame")
def _(ground):
    ground.test()()
    sorted(ground.clip.iterdir())[-1].unlink()
    return ground.test()


# ---- files of predictions


def frames(numbers, scores):
    return {TEST[0]: {"frame_idx": numbers, "scores": scores}}


for title, content, flags in (
    ("no predictions", None, {}),
    ("predictions that are no JSON", "clip start", {}),
    ("predictions that are a list", [], {}),
    ("no clip in the predictions", {}, {}),
    ("predictions of a detector", {"results": {TEST[0]: [{"segment": [1, 2], "score": 0.5}]}}, {}),
    ("a time that is NaN", {**FOUND, TEST[0]: [2.0, float("nan")]}, {}),
    ("a time that is text", {**FOUND, TEST[0]: [2.0, "6.0"]}, {}),
    ("times before the start of their clips", {name: [-2.0, -6.0] for name in TEST}, {}),
    ("times past the end of their clips", {name: [20, 61] for name in TEST}, {}),
    ("frames that are not in order", frames([1, 3, 2], [0.1, 0.7, 0.2]), {}),
    ("scores below 0", frames([1, 2, 3], [-0.1, 0.7, 0.2]), {}),
    ("predictions of training clips", dict.fromkeys(TRAIN, [2.0]), {}),
    ("a threshold for seconds", FOUND, {"threshold": 0.5}),
    ("a rule of peaks for seconds", FOUND, {"peaks": "official"}),
    ("predictions without an annotation", FOUND, {"root": None}),
    ("predictions of no clip that is scored", {TEST[1]: [3.0]}, {"rule": "efficientgebd"}),
):

    @fault(title)
    def _(ground, content=content, flags=flags):
        if content is not None:
            (ground.tmp / "found.json").write_text(
                content if isinstance(content, str) else json.dumps(content)
            )
        return ground.test(**{**FILE, **flags})


for title, write in (
    ("predictions that call code", lambda ground, path: path.write_bytes(hostile(ground))),
    ("predictions in a pickle with a set", lambda ground, path: write_pickle(path, {TEST[0]: {2.0, 6.0}})),
):

    @fault(title)
    def _(ground, write=write):
        write(ground, ground.tmp / "found.pkl")
        return ground.test(**{**FILE, "predictions": "<tmp>/found.pkl"})


@fault("a ground truth of the wrong part")
def _(ground):
    shutil.copy(ground.file.with_name(GROUND_TRUTH.format("train")), ground.file)
    (ground.tmp / "found.json").write_text(json.dumps(FOUND))
    return ground.test(**FILE)
