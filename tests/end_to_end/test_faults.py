"""Owns: the fault list - what a user can get wrong, the exact words they are told, and what is left on disk.

Every fault is really made: files are damaged, then the recipe, a script or `checkpoint.load` is called as a
user would. Each gives one message and one exit status, changes nothing that was there, and leaves nothing
half-written. docs/faults.md is this list; `python tests/end_to_end/test_faults.py` writes it anew.
"""

import builtins
import importlib
import importlib.util
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from moss_vllm.data.rows import BadRow, BadRows
from moss_vllm.vlm import checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "favor_lora.py"
LIST = ROOT / "docs" / "faults.md"
CLIPS = "FAVOR/videos/FAVOR-Train"
PLANNED = ("run/measured.jsonl", "run/rejected.jsonl")
STARTED = (*PLANNED, "run/settings.json", "run/train.jsonl")
# A memory of measured videos, which any run may add to.
MEMORY = "run/measured.jsonl"


class Fault(NamedTuple):
    """`kind` is what the recipe or `load` raises, or a script's exit status.

    In `message`, <tmp> is the test's folder, <base> its base model, <n> a number, <...> words of a library.
    """

    what: str
    start: Callable[[Any], Callable[[], Any]]
    kind: Any
    message: str
    leaves: tuple[str, ...]
    changes: tuple[str, ...]


FAULTS: list[Fault] = []


def fault(what, kind, message, *, leaves=(), changes=()):
    """Add a function that does the damage and returns what the user then runs."""

    def add(start):
        FAULTS.append(Fault(what, start, kind, message, leaves, changes))
        return start

    return add


# ---- the ground the damage is done to


def flags(given):
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def trained(recipe, tiny_base, world, tmp_path_factory):
    """The folder of a run of one step."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    out = tmp_path_factory.mktemp("trained") / "run"
    given = {"model": tiny_base, "data": world / "FAVOR", "out": out, "steps": 1, "batch_size": 2}
    recipe.main(flags({**given, "workers": 0, "lora_rank": 4, "tracker": "none"}))
    return out


@pytest.fixture
def ground(recipe, trained, tiny_base, world, tmp_path, one_process, monkeypatch):
    """A folder with the world's FAVOR-Train, and functions that add to it or run something."""
    favor, run, base = tmp_path / "FAVOR", tmp_path / "run", tmp_path / "base"
    shutil.copytree(world / CLIPS, tmp_path / CLIPS)
    rows = json.loads((world / "FAVOR" / "train.json").read_text())

    def write():
        (favor / "train.json").write_text(json.dumps(rows))

    def words(*more, **settings):
        given = {"model": tiny_base, "data": favor, "out": run, "steps": 2, "batch_size": 2, "workers": 0}
        return [*flags({**given, "lora_rank": 4, "tracker": "none", **settings}), *more]

    def train(*more, **settings):
        return partial(recipe.main, words(*more, **settings))

    def script(name, *given):
        return partial(importlib.import_module(name).main, list(map(str, given)))

    def checkpoint_folder():
        shutil.copytree(trained, run)
        return run / "step-000001"

    def base_folder():
        shutil.copytree(tiny_base, base)
        return base

    def delete_before(function, *indices):
        """Delete videos when the recipe comes to one of its functions."""
        call = getattr(recipe, function)

        def delete(*args, **settings):
            for index in indices:
                clip(index).unlink()
            return call(*args, **settings)

        monkeypatch.setattr(recipe, function, delete)

    def clip(index):
        return tmp_path / CLIPS / rows[index]["video_name"]

    write()
    return SimpleNamespace(
        tmp=tmp_path,
        favor=favor,
        world=world,
        tiny_base=tiny_base,
        rows=rows,
        write=write,
        clip=clip,
        delete_before=delete_before,
        words=words,
        train=train,
        dry=partial(train, "--dry-run"),
        script=script,
        load=lambda folder: partial(checkpoint.load, folder),
        checkpoint=checkpoint_folder,
        base=base_folder,
        patch=monkeypatch.setattr,
    )


def snapshot(folder):
    """Every file with its content, every folder without."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def pattern(message, ground):
    text = message.replace("<tmp>", str(ground.tmp)).replace("<base>", str(ground.tiny_base))
    return re.escape(text).replace("<n>", r"[\d.]+").replace(re.escape("<...>"), "(.|\n)+")


def edit_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_weights(file, change, pick=0):
    """Apply `change` to one tensor of a file; None takes it out."""
    weights = load_file(file)
    name = sorted(weights)[pick]
    changed = change(weights.pop(name))
    save_file(
        {**weights, name: changed.contiguous()} if changed is not None else weights, file, {"format": "pt"}
    )


def to_nan(tensor):
    return torch.full_like(tensor, float("nan"))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def hostile(ground):
    return pickle.dumps(Hostile(ground.tmp / "code-has-run"))


# ---- rows and annotation files


def fault_of_a_row(what, reason, *, where="row 3 (video 'world_train_00003.mp4')", kind="bad", rows=12):
    """One row of the plan is refused, which is more than the share that is allowed."""
    remedies = {
        "bad": "repair or remove the rows",
        "missing": "download the videos, or pass the folder that holds them",
    }
    message = (
        f"1 of {rows} rows ({1 / rows:.1%}) cannot be used, more than 1.0%; all are in rejected.jsonl once "
        "the "
        f"plan is written\n  1 {kind}: {remedies[kind]}; the first is {where} of FAVOR: {reason}\n"
        "  or raise max_rejected_share to train on the others"
    )
    return fault(what, RuntimeError, message)


@fault("a data folder that is not there", BadRow, "<tmp>/gone: file: is not there; check the path")
def _(ground):
    return ground.dry(data=ground.tmp / "gone")


@fault(
    "a data folder without an annotation",
    BadRow,
    "<tmp>/FAVOR: folder: holds no .json or .jsonl file; pass the annotation file itself",
)
def _(ground):
    (ground.favor / "train.json").unlink()
    return ground.dry()


@fault(
    "a data folder with two annotations",
    BadRow,
    "<tmp>/FAVOR: folder: holds 2 annotation files (a.json, b.json); pass the annotation file itself",
)
def _(ground):
    (ground.favor / "train.json").rename(ground.favor / "a.json")
    (ground.favor / "b.json").write_text("[]")
    return ground.dry()


def fault_of_a_file(what, content, message):
    @fault(what, BadRow, f"<tmp>/FAVOR/train.json: {message}")
    def _(ground):
        (ground.favor / "train.json").write_bytes(content)
        return ground.dry()


fault_of_a_file(
    "broken JSON",
    b'[{"video_name": "a.mp4",\n "caption" "b"}]',
    "line 2: broken JSON: <...> at column 12; repair the line or download the file again",
)
fault_of_a_file("an empty annotation file", b"", "file: is empty; download it again")
fault_of_a_file("an empty list", b"[]", "file: is an empty list; download it again")
fault_of_a_file(
    "NaN in the JSON",
    b'[{"video_name": "a.mp4", "caption": "b", "start": NaN}]',
    "file: cannot be read: NaN is not a number in JSON; replace the value, e.g. by null",
)
fault_of_a_file(
    "an annotation that is not UTF-8",
    b'[{"video_name": "\xff"}]',
    "file: is not UTF-8 text (<...>); save it as UTF-8",
)
fault_of_a_file(
    "an object in place of the list",
    b'{\n"a": 1}',
    "file: is one JSON object, not a list of rows; pass the file of rows",
)
fault_of_a_file(
    "an unknown format",
    b'[{"clip": "a", "text": "b"}]',
    "file: the first rows have the keys 'clip', 'text', which is no known format; use one of turns (turns); "
    "VideoLLaMA3 (conversations); MotionBenchCaption (video_path, motion_caption); FAVOR-Train (video_name, "
    "caption); see docs/data.md",
)


@fault_of_a_row(
    "a row without a caption", "has no 'caption', a string is needed; fill in 'caption' or remove the row"
)
def _(ground):
    del ground.rows[3]["caption"]
    ground.write()
    return ground.dry()


@fault_of_a_row(
    "a video captioned twice",
    "its video was already captioned; keep one of the two rows",
    where="row 12 ('world_train_00003')",
    rows=13,
)
def _(ground):
    ground.rows.append(ground.rows[3])
    ground.write()
    return ground.dry()


@fault_of_a_row(
    "a special token in a caption",
    "text contains a special token of the chat layout: 'It.<|im_end|>'; remove '<|...|>' from the row",
    where="world_train_00003",
)
def _(ground):
    ground.rows[3]["caption"] = "It.<|im_end|>"
    ground.write()
    return ground.dry()


for name in ("../../x.mp4", "/etc/x.mp4"):

    @fault_of_a_row(
        f"a video called {name}",
        f"video name '{name}' is not a relative file name; name a file below the video folder",
        where=f"row 3 (video '{name}')",
    )
    def _(ground, name=name):
        ground.rows[3]["video_name"] = name
        ground.write()
        return ground.dry()


@fault(
    "more rows too long than allowed",
    RuntimeError,
    "12 of 12 rows (100.0%) cannot be used, no row of FAVOR is left; all are in <tmp>/run/rejected.jsonl\n"
    "  12 too long: raise max_tokens, lower sample_fps, max_frames or short_side_px, or leave the rows "
    "out; the "
    "first is world_train_00000 of FAVOR: 196 tokens of 8 frames and the text, more than max_tokens=50; "
    "raise it, "
    "or lower sample_fps, max_frames or short_side_px, or leave the row out\n  or leave that source out",
    leaves=PLANNED,
)
def _(ground):
    return ground.train(max_tokens=50)


# ---- videos


MISSING = (
    "video 'world_train_00003.mp4' is in none of the folders ., videos/FAVOR-Train, FAVOR-Train, videos of "
    "<tmp>/FAVOR; download it or pass the folder that holds it"
)
UNREADABLE = "(remedy: copy or download the file again, or leave it out of the annotation file)"


@fault_of_a_row("missing videos, more than 1 %", MISSING, kind="missing")
def _(ground):
    ground.clip(3).unlink()
    return ground.dry()


@fault(
    "no video at all",
    BadRows,
    "<tmp>/FAVOR/train.json: 2 bad rows, 2 of them without a video:\n"
    f"  <tmp>/FAVOR/train.json: row 0 (video 'world_train_00003.mp4'): {MISSING}\n"
    f"  <tmp>/FAVOR/train.json: row 1 (video 'world_train_00004.mp4'): {MISSING.replace('00003', '00004')}",
)
def _(ground):
    ground.rows[:] = ground.rows[3:5]
    ground.write()
    shutil.rmtree(ground.favor / "videos")
    return ground.train()


def fault_of_a_video(what, damage, reason):
    @fault_of_a_row(what, f"<tmp>/{CLIPS}/world_train_00003.mp4: {reason}", where="world_train_00003")
    def _(ground):
        damage(ground.clip(3))
        return ground.dry()


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def overwrite_pictures(path):
    data = bytearray(path.read_bytes())
    pictures = slice(data.index(b"mdat") + 1000, data.index(b"moov") - 4)  # the header stays whole
    data[pictures] = np.random.default_rng(0).bytes(pictures.stop - pictures.start)
    path.write_bytes(data)


NO_VIDEO = f"not a video, or its header is lost (<...>) {UNREADABLE}"
fault_of_a_video(
    "a video of zero bytes", lambda path: path.write_bytes(b""), f"the file is empty (0 bytes) {UNREADABLE}"
)
fault_of_a_video("a text called .mp4", lambda path: path.write_text("Video unavailable\n" * 50), NO_VIDEO)
fault_of_a_video("half of a video", lambda path: path.write_bytes(path.read_bytes()[:2000]), NO_VIDEO)
fault_of_a_video(
    "a video with sound only",
    sound_only,
    "there is no video stream (sound only?) (remedy: check that it is the right file)",
)

TOO_MANY = (
    "of <n> rows so far could not be used, more than 0.5% of 12; see <tmp>/run/rejected-*.jsonl and mend "
    "the rows, "
    "or raise max_bad_share"
)


@fault(
    "a video with damaged pictures, found in training",
    RuntimeError,
    f"1 {TOO_MANY}",
    leaves=(*STARTED, "run/rejected-0.jsonl"),
)
def _(ground):
    overwrite_pictures(ground.clip(3))
    return ground.train(batch_size=12, steps=1)


@fault(
    "videos deleted between planning and training",
    RuntimeError,
    f"2 {TOO_MANY}",
    leaves=(*STARTED, "run/rejected-0.jsonl"),
    changes=tuple(f"{CLIPS}/world_train_0000{number}.mp4" for number in (3, 4)),
)
def _(ground):
    ground.delete_before("train", 3, 4)
    return ground.train(batch_size=12)


@fault(
    "the longest video deleted while the model is opened",
    RuntimeError,
    f"1 {TOO_MANY}",
    leaves=(*STARTED, "run/rejected-0.jsonl"),
    changes=(f"{CLIPS}/world_train_00003.mp4",),
)
def _(ground):
    ground.delete_before("build_model", 3)
    return ground.train(batch_size=12)


# ---- lists of sources, configs, settings


def fault_of_a_mix(what, text, message, kind=ValueError):
    @fault(what, kind, message)
    def _(ground):
        (ground.tmp / "mix.yaml").write_text(text)
        return ground.dry(data=ground.tmp / "mix.yaml")


fault_of_a_mix(
    "a source of weight 0",
    "- {path: FAVOR, weight: 0}",
    "<tmp>/mix.yaml: source 0: weight is 0; it must be a number above 0, such as 2 or 0.5",
)
fault_of_a_mix(
    "an unknown key of a source",
    "- {path: FAVOR, wieght: 2}",
    "<tmp>/mix.yaml: source 0 has the keys ['wieght']; known are path, weight, videos, name",
)
fault_of_a_mix(
    "a source without a path",
    "- {weight: 2}",
    "<tmp>/mix.yaml: source 0 has no path; name its folder or annotation file",
)
fault_of_a_mix(
    "a source that is not there", "- {path: GONE}", "<tmp>/GONE: file: is not there; check the path", BadRow
)
fault_of_a_mix("a broken list of sources", "- {path: FAVOR", "<tmp>/mix.yaml: cannot be read as YAML: <...>")


def fault_of_a_config(what, text, message):
    @fault(what, ValueError, f"<tmp>/run.yaml: {message}")
    def _(ground):
        (ground.tmp / "run.yaml").write_text(text)
        return ground.dry(config=ground.tmp / "run.yaml")


fault_of_a_config(
    "an unknown setting in the config", "stesp: 3", "unknown settings ['stesp']; known are <...>"
)
fault_of_a_config("a text where a number is due", "steps: many", "steps is 'many', expected int")
fault_of_a_config(
    "1e-3 in the config, which YAML reads as a text",
    "lr_moss: 1e-3",
    "lr_moss is '1e-3', expected float; in YAML such a number needs a dot: 1.0e-3",
)
fault_of_a_config(
    "a setting twice in the config",
    "steps: 3\nsteps: 4",
    "steps is there twice; remove one",
)


@fault("a config that is not there", ValueError, "<tmp>/gone.yaml: cannot be read as YAML: <...>")
def _(ground):
    return ground.dry(config=ground.tmp / "gone.yaml")


def fault_of_a_setting(what, message, *, kind=ValueError, **settings):
    @fault(what, kind, message)
    def _(ground):
        return ground.dry(**settings)


fault_of_a_setting("precision half", "precision is 'half'; it must be one of fp32, bf16", precision="half")
fault_of_a_setting("0 steps", "steps is 0; it must be at least 1", steps=0)
fault_of_a_setting("a learning rate of NaN", "lr_moss is nan; it must be a number from 0 to 1", lr_moss="nan")
fault_of_a_setting(
    "two wrong settings",
    "batch_size is 0; it must be at least 1; workers is -1; 0 decodes in the training process",
    batch_size=0,
    workers=-1,
)
fault_of_a_setting("0 frames", "max_frames is 0; it must be between 1 and inf", max_frames=0)
fault_of_a_setting("0 pixels", "short_side_px is 0; it must be between 28 and 10000", short_side_px=0)
fault_of_a_setting(
    "a negative seed",
    "seed is -1; it must be at least 0",
    seed=-1,
)
fault_of_a_setting(
    "alpha 0, with which LoRA learns nothing",
    "lora_alpha is 0; it must be at least 1",
    lora_alpha=0,
)
fault_of_a_setting(
    "dropout 1, with which LoRA learns nothing",
    "lora_dropout is 1.0; it must be below 1",
    lora_dropout=1,
)
fault_of_a_setting(
    "0 questions to ask",
    "eval_questions is 0; it must be at least 1",
    eval_questions=0,
)
fault_of_a_setting(
    "no data in quotes, as of an unset variable",
    "data is empty; name a folder or a file",
    data="",
)
fault_of_a_setting("an unknown size", "unknown shape '13b'; choose one of 2b, 7b", model="shape:13b")
fault_of_a_setting(
    "an unknown tracker",
    "tracker is 'excel'; it must be one of tensorboard, wandb, trackio, none",
    tracker="excel",
)


@fault(
    "a size in place of a model to train",
    ValueError,
    "shape:2b has no weights to train; add --dry-run, or name a checkpoint",
)
def _(ground):
    return ground.train(model="shape:2b")


@fault(
    "a tracker that is not installed",
    ImportError,
    "tracker 'wandb' is not installed: pip install -e \".[tracking]\"",
)
def _(ground):
    find = importlib.util.find_spec
    ground.patch(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more)
    )
    return ground.train(tracker="wandb")


# ---- folders to write to and to ask from


@fault(
    "evaluation data without a benchmark",
    BadRow,
    "<tmp>/empty: folder: holds none of video_info.meta.jsonl, MotionBench/video_info.meta.jsonl, "
    "video_perspective.json, question_perspective.json; pass a MotionBench or FAVOR-Bench folder",
    leaves=PLANNED,
)
def _(ground):
    (ground.tmp / "empty").mkdir()
    return ground.train(eval_data=ground.tmp / "empty", eval_every=1)


@fault(
    "a video of the evaluation that cannot be read",
    ValueError,
    "<tmp>/bench/<...>.mp4: the file is empty (0 bytes) <...>",
    leaves=PLANNED,
)
def _(ground):
    shutil.copytree(ground.world / "MotionBench", ground.tmp / "bench")
    for path in (ground.tmp / "bench").rglob("*.mp4"):
        path.write_bytes(b"")
    return ground.train(eval_data=ground.tmp / "bench", eval_every=1, eval_questions=3)


@fault(
    "a cache that is a file",
    ValueError,
    "cache <tmp>/cache is not a folder that can be written to (<...>); name another",
)
def _(ground):
    (ground.tmp / "cache").write_text("")
    return ground.dry(cache=ground.tmp / "cache")


@fault(
    "an output folder that is a file",
    ValueError,
    "out <tmp>/run is not a folder that can be written to (<...>); name another",
)
def _(ground):
    (ground.tmp / "run").write_text("")
    return ground.train()


# ---- going on with a run


@fault(
    "resuming from a folder that is no checkpoint",
    FileNotFoundError,
    "<tmp>/mine: no step-NNNNNN folder with a state; resume from a checkpoint of this run",
)
def _(ground):
    (ground.tmp / "mine").mkdir()
    return ground.train(resume=ground.tmp / "mine")


@fault(
    "a new run in the folder of another",
    FileExistsError,
    "<tmp>/run/step-000001 is there already; go on with --resume auto, or name another --out",
)
def _(ground):
    ground.checkpoint()
    return ground.train(lr_moss=0.01, tracker="tensorboard")


def fault_of_a_resume(what, message, *, kind=ValueError, **settings):
    def add(damage):
        @fault(what, kind, message)
        def _(ground):
            damage(ground, ground.checkpoint())
            more = ["--no-use-moss"] if settings.get("use_moss") is False else []
            return ground.train(
                *more, resume="auto", **{k: v for k, v in settings.items() if k != "use_moss"}
            )

    return add


@fault_of_a_resume(
    "resuming with another number of processes",
    "<tmp>/run/step-000001/state was written by 2 processes and this run has 1; resume with 2",
)
def _(ground, folder):
    shutil.copy(folder / "state" / "random-0.safetensors", folder / "state" / "random-1.safetensors")


@fault_of_a_resume(
    "resuming with another rank of LoRA",
    "<tmp>/run/step-000001/adapter_model.safetensors does not fit the base model: of its weights 56 of "
    "another "
    "shape (<...> and 51 more); check base_model and moss in run.json and the rank of LoRA, or use an "
    "earlier "
    "checkpoint",
    lora_rank=8,
)
def _(ground, folder):
    pass


@fault_of_a_resume(
    "resuming without MOSS",
    "<tmp>/run/step-000001/adapter_model.safetensors holds MOSS and its base was opened without; the "
    "setting moss "
    "(in run.json, or of the run to go on with) is not the one it was trained with",
    use_moss=False,
)
def _(ground, folder):
    pass


@fault_of_a_resume(
    "a state that DeepSpeed wrote",
    "<tmp>/run/step-000001/state was written by DeepSpeed and this run is one process; resume with the "
    "engine that "
    "wrote it",
)
def _(ground, folder):
    (folder / "state" / "zero").mkdir()
    (folder / "state" / "zero" / "optim.pt").write_bytes(hostile(ground))


UNUSABLE = "<tmp>/run/step-000001/state: cannot be read (<...>); resume from an earlier checkpoint"


@fault_of_a_resume("a pickle in place of the optimizer's state", UNUSABLE)
def _(ground, folder):
    (folder / "state" / "optimizer.safetensors").write_bytes(hostile(ground))


@fault_of_a_resume("a pickle in place of the random state", UNUSABLE)
def _(ground, folder):
    (folder / "state" / "random-0.safetensors").write_bytes(hostile(ground))


@fault_of_a_resume(
    "an optimizer's state of another shape",
    UNUSABLE,
)
def _(ground, folder):
    edit_weights(folder / "state" / "optimizer.safetensors", lambda tensor: tensor[:0])


@fault_of_a_resume(
    "an optimizer's state of NaN",
    UNUSABLE,
)
def _(ground, folder):
    edit_weights(folder / "state" / "optimizer.safetensors", to_nan)


@fault_of_a_resume(
    "a random state of another shape",
    UNUSABLE,
)
def _(ground, folder):
    weights = load_file(folder / "state" / "random-0.safetensors")
    save_file({**weights, "python": weights["python"][:3].clone()}, folder / "state" / "random-0.safetensors")


@fault_of_a_resume("a random state out of range", UNUSABLE)
def _(ground, folder):
    weights = load_file(folder / "state" / "random-0.safetensors")
    weights["numpy_rest"][0] = 1e9
    save_file(weights, folder / "state" / "random-0.safetensors")


@fault_of_a_resume("an optimizer's state out of range", UNUSABLE)
def _(ground, folder):
    edit_weights(folder / "state" / "optimizer.safetensors", lambda tensor: -tensor.abs() - 1, pick=1)


@fault_of_a_resume(
    "counts out of range",
    "<tmp>/run/step-000001/state/progress.json: cannot be used (seen is -5; <...>); resume from an "
    "earlier checkpoint",
)
def _(ground, folder):
    edit_json(folder / "state" / "progress.json", seen=-5)


@fault_of_a_resume(
    "a broken progress.json",
    "<tmp>/run/step-000001/state/progress.json: cannot be used (<...>); resume from an earlier checkpoint",
)
def _(ground, folder):
    (folder / "state" / "progress.json").write_text('{"step": 1')


@fault_of_a_resume(
    "a broken settings.json of the run",
    "<tmp>/run/settings.json: cannot be read as JSON (<...>); remove it",
)
def _(ground, folder):
    (folder.parent / "settings.json").write_text("{")


# ---- checkpoints


def fault_of_a_checkpoint(what, message, *, kind=ValueError):
    def add(damage):
        @fault(what, kind, message)
        def _(ground):
            folder = ground.checkpoint()
            damage(ground, folder)
            return ground.load(folder)

    return add


ADAPTER = "<tmp>/run/step-000001/adapter_model.safetensors"
CUT = (
    f"{ADAPTER}: cannot be read as safetensors (<...>); the file is cut short or damaged, use an earlier "
    "checkpoint"
)
UNFIT = "; check base_model and moss in run.json and the rank of LoRA, or use an earlier checkpoint"
FIRST = "language_model.layers.0.mlp.down_proj.lora_A.weight"


@fault_of_a_checkpoint("an adapter that is cut short", CUT)
def _(ground, folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@fault_of_a_checkpoint(
    "an adapter with NaN",
    f"{ADAPTER} does not fit the base model: of its weights 1 not finite ({FIRST}){UNFIT}",
)
def _(ground, folder):
    edit_weights(folder / "adapter_model.safetensors", to_nan)


@fault_of_a_checkpoint(
    "an adapter with an empty tensor",
    f"{ADAPTER} does not fit the base model: of its weights 1 empty ({FIRST}){UNFIT}",
)
def _(ground, folder):
    edit_weights(folder / "adapter_model.safetensors", lambda tensor: tensor[:0])


@fault_of_a_checkpoint(
    "an adapter that is a pickle",
    "<tmp>/run/step-000001/adapter_model.bin is a pickle, which can run code when opened; only "
    "adapter_model.safetensors is read: remove it if that file is there, else use another checkpoint",
)
def _(ground, folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(hostile(ground))


@fault_of_a_checkpoint("a pickle called .safetensors", CUT)
def _(ground, folder):
    (folder / "adapter_model.safetensors").write_bytes(hostile(ground))


@fault_of_a_checkpoint(
    "a checkpoint of another base",
    "<tmp>/base is not the base that <tmp>/run/step-000001 was trained on (fingerprint <...>, not <...>); "
    "if that one "
    "is elsewhere now, write where as base_model into <tmp>/run/step-000001/run.json",
)
def _(ground, folder):
    edit_weights(ground.base() / "model.safetensors", lambda tensor: tensor + 1)
    edit_json(folder / "run.json", base_model=str(ground.tmp / "base"))


NO_MODEL = (
    "no config.json there; give a checkpoint folder, a native VideoLLaMA3 folder, a hub id (owner/name) or "
    "'miniature'"
)


@fault_of_a_checkpoint(
    "a checkpoint whose base is gone",
    f"the base model of <tmp>/run/step-000001 is not there: <tmp>/gone: {NO_MODEL}; if it is elsewhere "
    "now, write "
    "where as base_model into <tmp>/run/step-000001/run.json",
    kind=FileNotFoundError,
)
def _(ground, folder):
    edit_json(folder / "run.json", base_model=str(ground.tmp / "gone"))


@fault_of_a_checkpoint(
    "a checkpoint without run.json",
    "<tmp>/run/step-000001 has no run.json, which names the base model; the checkpoint is incomplete, use "
    "another one",
    kind=FileNotFoundError,
)
def _(ground, folder):
    (folder / "run.json").unlink()


@fault_of_a_checkpoint(
    "another window of MOSS",
    f"{ADAPTER} does not fit the base model: of its weights 4 of another shape "
    "(vision_model.moss.order1.fuse.conv.weight"
    ", vision_model.moss.order1.uv_proj.linear.weight, vision_model.moss.order2.fuse.conv.weight, "
    f"vision_model.moss.order2.uv_proj.linear.weight){UNFIT}",
)
def _(ground, folder):
    moss = json.loads((folder / "run.json").read_text())["moss"]
    edit_json(folder / "run.json", moss={**moss, "moss_window": [5, 5, 5]})


@fault_of_a_checkpoint(
    "a setting that MOSS does not have",
    "<tmp>/run/step-000001/run.json: unknown MOSS settings ['moss_win']; known are ['moss_after_layer', "
    "'moss_d_fuse', 'moss_d_hidden', 'moss_d_similarity', 'moss_input_fc', 'moss_orders', 'moss_window']",
)
def _(ground, folder):
    edit_json(folder / "run.json", moss={"moss_win": [3, 3, 3]})


@fault_of_a_checkpoint(
    "a checkpoint without its tokenizer",
    "<tmp>/run/step-000001: its processor cannot be read (<...>); use a complete checkpoint",
)
def _(ground, folder):
    (folder / "tokenizer.json").unlink()


def name_code(folder, mark):
    """Make transformers ask whether to run a Python file of the folder."""
    edit_json(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")


@fault_of_a_checkpoint(
    "a processor that is code, and a user who answers yes",
    "<tmp>/run/step-000001: its processor cannot be read (<...>); use a complete checkpoint",
)
def _(ground, folder):
    name_code(folder, ground.tmp / "code-has-run")
    ground.patch(builtins, "input", lambda *prompt: "y")


@fault("a checkpoint that is not there", FileNotFoundError, f"<tmp>/gone: {NO_MODEL}")
def _(ground):
    return ground.load(ground.tmp / "gone")


@fault(
    "a run's folder in place of a checkpoint",
    FileNotFoundError,
    "<tmp>/run is the folder of a run; give one of its checkpoints, such as <tmp>/run/step-000001",
)
def _(ground):
    ground.checkpoint()
    return ground.load(ground.tmp / "run")


# ---- base models


def fault_of_a_base(what, message, *, kind=ValueError):
    def add(damage):
        @fault(what, kind, message)
        def _(ground):
            damage(ground, ground.base())
            return ground.dry(model=ground.tmp / "base")

    return add


@fault("a model that is not there", FileNotFoundError, f"<tmp>/gone: {NO_MODEL}")
def _(ground):
    return ground.dry(model=ground.tmp / "gone")


@fault_of_a_base(
    "a base with a missing weight",
    "<tmp>/base: weights missing or left over: model.vision_model.post_layernorm.weight; use a complete "
    "checkpoint",
)
def _(ground, folder):
    edit_weights(folder / "model.safetensors", lambda tensor: None, -1)


@fault_of_a_base(
    "a base with an empty weight",
    "<tmp>/base/model.safetensors: its weight model.vision_model.post_layernorm.weight is empty; fetch it "
    "again",
)
def _(ground, folder):
    edit_weights(folder / "model.safetensors", lambda tensor: tensor[:0], -1)


@fault_of_a_base(
    "a base that is cut short",
    "<tmp>/base/model.safetensors: cannot be read as safetensors (<...>); the file is cut short or damaged, "
    "fetch it again",
)
def _(ground, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


@fault_of_a_base(
    "a base without weights",
    "<tmp>/base: has no model.safetensors, or not all its shards; use a complete checkpoint",
)
def _(ground, folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(hostile(ground))


@fault_of_a_base(
    "a base with broken JSON",
    "<tmp>/base/config.json: cannot be read as JSON (<...>); fetch it again",
)
def _(ground, folder):
    (folder / "config.json").write_text("{")


@fault_of_a_base(
    "another kind of model",
    "<tmp>/base: model_type 'qwen2' is not native VideoLLaMA3 ('video_llama_3'); give a native VideoLLaMA3 "
    "folder or "
    "hub id",
)
def _(ground, folder):
    Qwen2Config(hidden_size=8).save_pretrained(folder)


@fault_of_a_base(
    "the authors' release as it is",
    "<tmp>/base: model_type 'videollama3_qwen2' is not native VideoLLaMA3 ('video_llama_3'); convert the "
    "authors' "
    "release first: python scripts/convert_videollama3.py SOURCE OUT, where SOURCE is its folder and OUT "
    "what to "
    "give here",
)
def _(ground, folder):
    edit_json(folder / "config.json", model_type="videollama3_qwen2", auto_map={"AutoConfig": "own.Own"})
    name_code(folder, ground.tmp / "code-has-run")
    ground.patch(builtins, "input", lambda *prompt: "y")


@fault_of_a_base(
    "a base whose processor is code, and a user who answers yes",
    "<tmp>/base: its processor cannot be read (<...>); use a complete checkpoint",
)
def _(ground, folder):
    name_code(folder, ground.tmp / "code-has-run")
    ground.patch(builtins, "input", lambda *prompt: "y")


@fault(
    "a checkpoint in place of a base",
    FileNotFoundError,
    "<tmp>/run/step-000001 is a checkpoint; go on with it by --resume, or merge it first: python "
    "scripts/merge.py "
    "<tmp>/run/step-000001 OUT, and give OUT",
)
def _(ground):
    return ground.dry(model=ground.checkpoint())


@fault(
    "a base with NaN: a loss that is NaN",
    RuntimeError,
    "the loss of step 1 is nan; rows of this process's batch: world_train_<n>, world_train_<n> (in "
    "<tmp>/run/not-finite-step-000001-0.json); look at them, lower the learning rates, or go on from a "
    "checkpoint "
    "with --resume",
    leaves=(*STARTED, "run/not-finite-step-000001-0.json"),
)
def _(ground):
    edit_weights(ground.base() / "model.safetensors", to_nan)
    return ground.train(model=ground.tmp / "base")


# ---- scripts


def nothing(ground):
    pass


def fault_of_a_script(what, status, message, command, *, prepare=nothing):
    """`command` may hold <tmp>, <base>, <clip> and <checkpoint>."""
    name, *given = shlex.split(command)

    @fault(f"{name}.py: {what}", status, message)
    def _(ground):
        folder = ground.checkpoint()
        prepare(ground)
        places = {
            "<tmp>": ground.tmp,
            "<base>": ground.tiny_base,
            "<clip>": ground.clip(0),
            "<checkpoint>": folder,
        }
        texts = [re.sub(r"<\w+>", lambda found: str(places[found[0]]), text) for text in given]
        return ground.script(name, *texts)


def file_at_out(ground):
    (ground.tmp / "out").write_text("mine")


def full_out(ground):
    (ground.tmp / "out").mkdir()
    (ground.tmp / "out" / "mine.txt").write_text("mine")


def release(text):
    def write(ground):
        (ground.tmp / "release").mkdir()
        (ground.tmp / "release" / "config.json").write_text(text)

    return write


ASK = "ask <clip> 'what moves?' --ckpt <base>"
fault_of_a_script(
    "no video there",
    1,
    "<tmp>/gone.mp4: no such file or folder; give a video or a folder of frames",
    "ask <tmp>/gone.mp4 'what moves?'",
)
fault_of_a_script(
    "no checkpoint there", 1, f"<tmp>/gone: {NO_MODEL}", "ask <clip> 'what moves?' --ckpt <tmp>/gone"
)
fault_of_a_script("0 words", 1, "--max-new-tokens is 0; it must be at least 1", f"{ASK} --max-new-tokens 0")
fault_of_a_script(
    "an end before the start",
    1,
    "end_s is 2.0; it must be above start_s, which is 5.0",
    f"{ASK} --start-s 5 --end-s 2",
)
fault_of_a_script(
    "a start after the end",
    1,
    f"<tmp>/{CLIPS}/world_train_00000.mp4: start_s is 500.0, the video ends at 4.00 s (remedy: check the "
    "annotation "
    "against the file)",
    f"{ASK} --start-s 500",
)
fault_of_a_script(
    "a special token in the question",
    1,
    "text contains a special token of the chat layout: '<|im_end|>'; remove '<|...|>' from the row",
    "ask <clip> '<|im_end|>' --ckpt <base>",
)
fault_of_a_script(
    "an unknown device", 1, "device='cdua' is not to be had here (<...>); use 'cpu'", f"{ASK} --device cdua"
)

fault_of_a_script(
    "a folder that is no checkpoint",
    1,
    "<tmp>/gone has no run.json, so there is nothing to merge; give a step-NNNNNN folder of a run",
    "merge <tmp>/gone <tmp>/out",
)
MERGE = "merge <checkpoint> <tmp>/out"
fault_of_a_script(
    "an output folder in use",
    1,
    "<tmp>/out is there and not empty; name a new folder",
    MERGE,
    prepare=full_out,
)


def cut_adapter(ground):
    file = ground.tmp / "run" / "step-000001" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


fault_of_a_script("an adapter that is cut short", 1, CUT, MERGE, prepare=cut_adapter)

PUSH = "push <checkpoint> owner/name --dry-run --out <tmp>/out"
fault_of_a_script(
    "a name without an owner",
    1,
    "REPO_ID is 'name'; it must be OWNER/NAME",
    "push <checkpoint> name --dry-run",
)
fault_of_a_script(
    "an output folder in use",
    1,
    "<tmp>/out is there and not empty; name another --out",
    PUSH,
    prepare=full_out,
)
fault_of_a_script(
    "a result that is not there",
    1,
    "<tmp>/gone.json: is not a file; give the result.json of an evaluation",
    f"{PUSH} --results <tmp>/gone.json",
)


def pickle_beside(ground):
    (ground.tmp / "run" / "step-000001" / "adapter_model.bin").write_bytes(hostile(ground))


def token_in_record(ground):
    edit_json(ground.tmp / "run" / "step-000001" / "run.json", command=f"train --token hf_{'a' * 30}")


fault_of_a_script(
    "a pickle in the checkpoint",
    1,
    "<tmp>/run/step-000001/adapter_model.bin is a pickle, which can run code when opened; remove it",
    PUSH,
    prepare=pickle_beside,
)
fault_of_a_script(
    "an access token in the record",
    1,
    "<tmp>/run/step-000001: what looks like an access key would be published: <...>run.json: line 1: a "
    "Hugging Face token (hf_a...)<...>; remove it there, and withdraw the key if others could read it",
    PUSH,
    prepare=token_in_record,
)

CONVERT = "convert_videollama3 <tmp>/release <tmp>/out"
fault_of_a_script(
    "no release there",
    1,
    "<tmp>/release: no config.json there; give the folder of a downloaded release (hf download "
    "DAMO-NLP-SG/VideoLLaMA3-2B --local-dir FOLDER)",
    CONVERT,
)
fault_of_a_script(
    "a native model",
    1,
    "<base>: is native already (model_type 'video_llama_3'); use it as it is",
    "convert_videollama3 <base> <tmp>/out",
)
NO_JSON = "<tmp>/release/config.json: cannot be read as JSON (<...>); download it again"
fault_of_a_script("broken JSON", 1, NO_JSON, CONVERT, prepare=release("{"))
fault_of_a_script(
    "JSON that is a list",
    1,
    NO_JSON,
    CONVERT,
    prepare=release("[]"),
)

for script, flag in (("check_videos", "--out"), ("cache_frames", "--cache")):
    fault_of_a_script(
        "no data there",
        2,
        "<tmp>/gone: file: is not there; check the path",
        f"{script} --data <tmp>/gone {flag} <tmp>/out",
    )
    fault_of_a_script(
        "an output folder that is a file",
        2,
        f"{flag} <tmp>/out is not a folder that can be written to (<...>); name another",
        f"{script} --data <tmp>/FAVOR {flag} <tmp>/out",
        prepare=file_at_out,
    )
fault_of_a_script(
    "0 frames a second",
    2,
    "argument --sample-fps: 0 is below 0.001",
    "check_videos --data <tmp>/FAVOR --sample-fps 0 --out <tmp>/out",
)


def foreign_list(ground):
    (ground.tmp / "out").mkdir()
    (ground.tmp / "out" / "checked.jsonl").write_text('{"a": 1}\n')


fault_of_a_script(
    "a list that something else wrote",
    2,
    "<tmp>/out/checked.jsonl: not written by this script (KeyError('clip')); pass another --out",
    "check_videos --data <tmp>/FAVOR --out <tmp>/out",
    prepare=foreign_list,
)
fault_of_a_script(
    "no videos there",
    2,
    "--videos <tmp>/gone is not a folder",
    "prepare_favor --data <tmp>/FAVOR --videos <tmp>/gone",
)
fault_of_a_script(
    "no annotation there",
    2,
    "<tmp>/gone: file: is not there; check the path",
    "prepare_favor --data <tmp>/gone",
)
fault_of_a_script(
    "an output folder that is a file",
    2,
    "--out <tmp>/out is not a folder that can be written to (<...>); name another",
    "prepare_favor --data <tmp>/FAVOR --out <tmp>/out",
    prepare=file_at_out,
)


# ---- the list


PARAMS = [
    pytest.param(
        one,
        id=re.sub(r"\W+", "-", one.what),
    )
    for one in FAULTS
]


@pytest.mark.parametrize("one", PARAMS)
def test_a_fault_is_told_and_nothing_is_lost(one, ground, capsys, monkeypatch):
    start = one.start(ground)
    monkeypatch.chdir(ground.tmp)  # a message may name what is below runs/ here
    before = snapshot(ground.tmp)
    capsys.readouterr()
    is_status = isinstance(one.kind, int)
    with pytest.raises(SystemExit if is_status else one.kind) as caught:
        start()
    told = str(caught.value).removeprefix("error: ") if is_status else str(caught.value)
    if is_status:
        code: Any = caught.value.code
        assert one.kind == (code if isinstance(code, int) else 1)  # Python prints a text and exits with 1
        if isinstance(code, int):  # argparse has printed the message
            told = capsys.readouterr().err.split(": error: ", 1)[-1].strip()
    assert re.fullmatch(pattern(one.message, ground), told), told
    after = snapshot(ground.tmp)
    assert {name for name in before if after.get(name) != before[name]} - {MEMORY} == set(one.changes)
    allowed = {str(path) for name in one.leaves for path in (Path(name), *Path(name).parents)}
    assert after.keys() - before.keys() == allowed - before.keys() - {"."}


def test_the_rows_of_a_loss_that_is_nan_are_written(ground):
    edit_weights(ground.base() / "model.safetensors", to_nan)
    with pytest.raises(RuntimeError) as caught:
        ground.train(model=ground.tmp / "base")()
    found = json.loads((ground.tmp / "run" / "not-finite-step-000001-0.json").read_text())
    assert found["step"] == 1 and found["loss"] == "nan" and len(found["row_ids"]) == 2
    assert f"batch: {', '.join(found['row_ids'])} (in" in str(caught.value)
    assert set(found["row_ids"]) < {Path(row["video_name"]).stem for row in ground.rows}


def test_rejected_rows_are_written_with_their_reasons(ground):
    ground.clip(3).write_bytes(b"")
    ground.rows[4]["video_name"] = "/etc/x.mp4"
    ground.write()
    with pytest.raises(RuntimeError, match=r"2 of 12 rows \(16\.7%\) cannot be used"):
        ground.train()()
    lines = (ground.tmp / "run" / "rejected.jsonl").read_text().splitlines()
    found = {row["row_id"]: (row["source"], row["kind"]) for row in map(json.loads, lines)}
    assert found == {"row 4 (video '/etc/x.mp4')": ("FAVOR", "bad"), "world_train_00003": ("FAVOR", "bad")}


def test_resume_auto_into_nothing_is_a_new_run(ground):
    assert [line["step"] for line in ground.train(resume="auto", steps=1)()] == [1]
    assert (ground.tmp / "run" / "step-000001" / "run.json").is_file()


def test_a_video_deleted_in_training_is_counted_and_named(ground):
    ground.delete_before("train", 3)
    lines = ground.train(batch_size=12, max_bad_share=0.1, steps=1)()
    assert lines[0]["clips"] == 11
    (line,) = (ground.tmp / "run" / "rejected-0.jsonl").read_text().splitlines()
    reason = f"{ground.clip(3)}: No such file or directory (remedy: check the path, and that you may read it)"
    assert json.loads(line) == {"row_id": "world_train_00003", "reason": reason}


# ---- as processes


def run_limited(ground, limit_kib, command, *, timeout_s=120):
    """Run a script where no file may grow beyond the limit, as on a full disk."""
    wanted = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    shell = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "-", sys.executable, *map(str, command)]
    return subprocess.run(
        shell,
        env={**os.environ, **wanted, "PYTHONPATH": str(ROOT)},
        cwd=ground.tmp,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


FULL = "<...>File too large<...>"


@pytest.mark.slow
def test_a_disk_that_is_full_while_saving_costs_no_earlier_checkpoint(ground):
    folder = ground.checkpoint()
    before = snapshot(ground.tmp)
    done = run_limited(ground, 100, [RECIPE, *ground.words(resume="auto")])
    told = done.stderr.strip().splitlines()[-1]
    message = (
        f"error: <tmp>/run/step-000002 could not be written: {FULL} (<n> GiB are free there). Nothing "
        "half-written is left and the last whole checkpoint is <tmp>/run/step-000001; mend the cause (a "
        "full disk: "
        "make room) and run again with --resume auto"
    )
    assert done.returncode == 1 and re.fullmatch(pattern(message, ground), told), done.stderr[-2000:]
    after = snapshot(ground.tmp)
    changed = {name for name in before if after.get(name) != before[name]} - {MEMORY}
    assert before.keys() - after.keys() == {"run/finished"} and not after.keys() - before.keys()
    assert changed - {"run/finished"} == {"run/train.jsonl", "run/settings.json"}
    checkpoint.load(folder)


@pytest.mark.slow
def test_a_disk_that_is_full_while_planning_is_named(ground):
    done = run_limited(ground, 1, [RECIPE, *ground.words()])
    message = f"<...><tmp>/run/measured.jsonl{FULL}"
    assert done.returncode == 1 and re.fullmatch(
        pattern(message, ground), done.stderr.strip().splitlines()[-1]
    )


@pytest.mark.slow
def test_a_disk_that_is_full_while_merging_leaves_nothing(ground):
    folder = ground.checkpoint()
    before = snapshot(ground.tmp)
    done = run_limited(ground, 1000, [ROOT / "scripts" / "merge.py", folder, ground.tmp / "out"])
    assert snapshot(ground.tmp) == before
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.fullmatch(pattern(f"error: {FULL}", ground), done.stderr.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("limit_kib, more, status", [(100, [], 2), (10**6, ["--cache-gib", "0.0005"], 0)])
def test_a_cache_that_takes_no_more_ends_the_script(ground, limit_kib, more, status):
    script = [ROOT / "scripts" / "cache_frames.py", "--data", ground.favor, "--cache", ground.tmp / "cache"]
    done = run_limited(ground, limit_kib, [*script, "--workers", "1", *more], timeout_s=25)
    assert done.returncode == status and "the cache took no more (the reason is above)" in done.stdout
    assert "nothing is added any more, other clips are decoded each time" in done.stderr
    assert not list(ground.tmp.rglob("*.part"))


@pytest.mark.slow
def test_the_recipe_ends_with_one_line_and_status_1(ground):
    done = run_limited(ground, 10**6, [RECIPE, *ground.words(precision="half")])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: precision is 'half'; it must be one of fp32, bf16"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(ground):
    (ground.tmp / "run").mkdir(mode=0o500)
    with pytest.raises((ValueError, OSError), match=re.escape(str(ground.tmp / "run"))):
        ground.train()()


# ---- docs/faults.md


def test_the_list_in_the_docs_is_this_one():
    assert LIST.read_text() == as_markdown(), "python tests/end_to_end/test_faults.py writes it anew"


def as_markdown():
    lines = [
        "# Faults",
        "",
        "What can be wrong, and what you are told. `<tmp>` stands for your folder, `<base>` for a base "
        "model,",
        "`<n>` for a number, `<...>` for words of a library. Written by",
        "`python tests/end_to_end/test_faults.py`; the tests make every fault and compare.",
        "",
    ]
    for one in FAULTS:
        lines += [f"**{one.what}**", "", *(f"    {line}" for line in one.message.splitlines()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    LIST.write_text(as_markdown())
