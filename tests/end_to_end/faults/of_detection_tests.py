"""Checkpoints, data and files of eval/detection.py.

A flag's value may hold <tmp>, with the checkpoint <tmp>/run/best and the data set <tmp>/thumos.
"""

import json
import shutil
from functools import partial

import torch
from detection_layouts import TEST
from launching import ROOT, load_script
from safetensors.torch import load_file, save_file
from tiny_detector import edit_run

from faults import engine
from faults.engine import cut, edit_weights, to_nan
from moss_vllm.detection.checkpoint import AVERAGE_FILE, WEIGHTS_FILE

STORE = "run/best-test/answers/00-of-01.jsonl"
BIAS = "detector.head.cls_out.bias"


def fault(title, kind=1, **more):
    return engine.fault(f"eval/detection.py: {title}", kind, ground="detector_ground", **more)


def nothing(ground):
    pass


# ---- flags

for title, flags in (
    ("neither a checkpoint nor predictions", {"ckpt": None}),
    ("both a checkpoint and predictions", {"predictions": "<tmp>/found.json"}),
    ("no window at once", {"batch_size": 0}),
    ("a limit without a cache", {"cache_gib": 1.0}),
    ("a variant that Table 8 does not have", {"variant": "g"}),
    (
        "flags of a model for a file of predictions",
        {"ckpt": None, "predictions": "<tmp>/found.json", "batch_size": 1, "decoder": "pyav"},
    ),
):

    @fault(title, 2)
    def _(ground, flags=flags):
        return ground.test(**flags)


# ---- checkpoints


def without(name):
    return lambda ground: (ground.best / name).unlink()


def as_classifier(ground):
    for name in (WEIGHTS_FILE, AVERAGE_FILE):
        (ground.best / name).unlink()
    save_file({"ladder.norm.weight": torch.ones(3)}, ground.best / "classifier.safetensors")


def as_video_llm(ground):
    as_classifier(ground)
    (ground.best / "classifier.safetensors").rename(ground.best / "adapter_model.safetensors")


def empty(ground):
    shutil.rmtree(ground.best)
    ground.best.mkdir()


def weights(change, pick=BIAS):
    return lambda ground: edit_weights(ground.best / AVERAGE_FILE, change, pick)


def left_over(ground):
    file = ground.best / AVERAGE_FILE
    save_file({**load_file(file), "detector.extra": torch.zeros(2)}, file)


def record(**values):
    return lambda ground: edit_run(ground.best, **values)


def write_record(text):
    return lambda ground: (ground.best / "run.json").write_text(text)


def without_encoder(ground):
    edit_run(ground.best, model={"encoder": str(ground.tmp / "gone")})


def without_step(ground):
    run = json.loads((ground.best / "run.json").read_text())
    del run["step"]
    (ground.best / "run.json").write_text(json.dumps(run))


for title, damage, flags in (
    ("no checkpoint", nothing, {"ckpt": "<tmp>/gone"}),
    ("an empty folder", empty, {}),
    ("the run's folder", nothing, {"ckpt": "<tmp>/run"}),
    ("a checkpoint of a classifier", as_classifier, {}),
    ("a checkpoint of a Video-LLM", as_video_llm, {}),
    ("no averaged weights", without(AVERAGE_FILE), {}),
    ("weights that are cut short", lambda ground: cut(ground.best / AVERAGE_FILE, 10), {}),
    ("weights of another shape", weights(lambda tensor: torch.ones(7)), {}),
    ("a weight that is missing", weights(lambda tensor: None, "adapters.0.gamma"), {}),
    ("a weight left over", left_over, {}),
    ("weights that are not finite", weights(to_nan), {}),
    ("a broken record", write_record("{"), {}),
    ("a record of something else", write_record("{}"), {}),
    ("a record of a later version", record(model={"depth": 3}), {}),
    ("a record without a step", without_step, {}),
    ("a record of other windows", record(windows={"steps": "16"}), {}),
    ("a record whose classes are a number", record(classes=3), {}),
    ("a record of a root that is none", record(settings={"root": 3}), {}),
    ("an encoder with other weights", record(encoder_fingerprint="0123456789abcdef"), {}),
    ("an encoder that is gone", without_encoder, {}),
    ("weights of the encoder that are gone", nothing, {"weights": "<tmp>/vit.safetensors"}),
    ("fewer classes than the data", record(classes=["CliffDiving"]), {}),
    ("unknown data", nothing, {"data": "charades"}),
    ("no root", record(settings={"root": None}), {"root": None}),
):

    @fault(title, 2 if title == "unknown data" else 1)
    def _(ground, damage=damage, flags=flags):
        damage(ground)
        return ground.test(**flags)


@fault("weights whose outputs are not finite", leaves=(STORE,))
def _(ground):
    edit_weights(ground.best / AVERAGE_FILE, lambda tensor: tensor + 3e38, "detector.head.distance_out.bias")
    return ground.test()


# ---- data


def break_videos(ground):
    for name in TEST:
        file = ground.videos / f"{name}.mp4"
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        file.write_bytes(b"no video")


def shorten_videos(ground):
    content = json.loads(ground.file.read_text())
    for name in TEST:
        content["database"][name].update(duration=60.0, frame=600)
    ground.file.write_text(json.dumps(content))


for title, damage in (("no video can be read", break_videos), ("no video is long enough", shorten_videos)):

    @fault(title, leaves=(STORE,))
    def _(ground, damage=damage):
        damage(ground)
        return ground.test()


for title, damage, flags in (
    ("a video is missing", lambda ground: (ground.videos / f"{TEST[0]}.mp4").unlink(), {}),
    ("a subset without videos", nothing, {"subset": "test"}),
    ("no folder of videos", nothing, {"videos": "<tmp>/gone"}),
    ("no annotation", nothing, {"annotation": "<tmp>/gone.json"}),
):

    @fault(title)
    def _(ground, damage=damage, flags=flags):
        damage(ground)
        return ground.test(**flags)


# ---- going on


@fault("a folder with the test of other weights")
def _(ground):
    ground.test()()
    edit_weights(ground.best / AVERAGE_FILE, lambda tensor: tensor + 1, BIAS)
    return ground.test()


@fault("a line that is none")
def _(ground):
    ground.test()()
    (ground.tmp / STORE).open("a").write("no line\n")
    return ground.test()


@fault("a video that was replaced")
def _(ground):
    ground.test()()
    shutil.copy(ground.videos / f"{TEST[0]}.mp4", ground.videos / f"{TEST[2]}.mp4")
    return ground.test()


@engine.fault(
    "eval/compare.py: a detector's test and a folder of something else", 1, ground="detector_ground"
)
def _(ground):
    ground.test()()
    folders = [str(ground.tmp / "run" / name) for name in ("best-test", "best")]
    return partial(load_script(ROOT / "eval" / "compare.py").main, folders)


@fault("a result folder that cannot be written to")
def _(ground):
    (ground.tmp / "out").touch()
    return ground.test(out="<tmp>/out")


@engine.fault("eval/compare.py: tests of detectors on other classes", 1, ground="detector_ground")
def _(ground):
    ground.test()()
    shutil.copytree(ground.tmp / "thumos", ground.tmp / "other")
    (ground.tmp / "other" / "annotations" / "category_idx.txt").write_text(
        "CliffDiving\nDiving\nCricketShot\n"
    )
    predictions = ground.tmp / "run" / "best-test" / "predictions.json"
    ground.test(ckpt=None, root=ground.tmp / "other", predictions=predictions, out=ground.tmp / "scored")()
    folders = [str(ground.tmp / name) for name in ("run/best-test", "scored")]
    return partial(load_script(ROOT / "eval" / "compare.py").main, folders)


# ---- files of predictions


for title, text, flags in (
    ("no predictions", None, {}),
    ("predictions that are no JSON", "video start end", {}),
    ("predictions of an unknown class",
     '{"results": {"video_test_0000004": [{"segment": [1, 2], "label": "Golf", "score": 0.5}]}}', {}),
    ("predictions without an annotation", '{"results": {}}', {"root": None}),
):  # fmt: skip

    @fault(title)
    def _(ground, text=text, flags=flags):
        if text:
            (ground.tmp / "found.json").write_text(text)
        return ground.test(ckpt=None, predictions="<tmp>/found.json", **flags)
