"""Data, settings and checkpoints of recipes/action_recog.py and eval/action_recog.py.

A setting may hold <tmp> and <list>, a folder of action clips in the layout `list`.
"""

import json
import re
import shlex

import torch
from action_layouts import DATASETS
from safetensors.torch import load_file, save_file

from faults import engine
from faults.engine import STARTED, cut, edit_json, edit_weights, to_nan
from moss_vllm.recognition.checkpoint import WEIGHTS_FILE

LABELS = {
    "ssv1": "something-something-v1-labels.csv",
    "ssv2": "labels/labels.json",
    "diving48": "Diving48_vocab.json",
    "gym99": "gym99_categories.txt",
    "gym288": "gym288_categories.txt",
    "k400": "train.csv",  # its classes are those of the lists
    "list": "sth_labels.csv",
}
LISTS = {
    "ssv1": ("something-something-v1-train.csv", "something-something-v1-validation.csv"),
    "ssv2": ("labels/train.json", "labels/validation.json"),
    "diving48": ("Diving48_V2_train.json", "Diving48_V2_test.json"),
    "gym99": ("gym99_train_element_v1.1.txt", "gym99_val_element.txt"),
    "gym288": ("gym288_train_element_v1.1.txt", "gym288_val_element.txt"),
    "k400": ("train.csv", "val.csv"),
    "list": ("train.txt", "val.txt"),
}
OTHER_CLASSES = {  # what stands for a class in a list, and for none; Kinetics' lists name its classes
    "ssv1": ("Turning", "Eating"),
    "ssv2": ("Turning", "Eating"),
    "diving48": ('"label": 47', '"label": 48'),
    "gym99": ("0036 98", "0036 99"),
    "gym288": ("0036 287", "0036 288"),
    "list": ("clip 1 12 2", "clip 1 12 4"),
}


def fault(title, kind=ValueError, **more):
    return engine.fault(title, kind, ground="action_ground", **more)


def fill(text, ground):
    return re.sub(r"<(\w+)>", lambda found: str(ground.places[found[1]]), text)


# ---- datasets


for data in DATASETS:

    @fault(f"{data}: no folder")
    def _(ground, data=data):
        return ground.train(data=data, root=ground.tmp / "gone")

    @fault(f"{data}: no file of classes")
    def _(ground, data=data):
        root = ground.copy(data)
        (root / LABELS[data]).unlink()
        return ground.train(data=data, root=root)

    for split, name in zip(("train", "test"), LISTS[data], strict=True):

        @fault(f"{data}: nothing in the list of {split}")
        def _(ground, data=data, name=name):
            root = ground.copy(data)
            header = (root / name).read_text().splitlines()[0] if data == "k400" else ""
            (root / name).write_text("[]" if name.endswith(".json") else header)
            return ground.train(data=data, root=root)


for data, (known, unknown) in OTHER_CLASSES.items():

    @fault(f"{data}: a class that is not in its file of classes")
    def _(ground, data=data, known=known, unknown=unknown):
        file = ground.copy(data) / LISTS[data][0]
        text = file.read_text()
        assert known in text
        file.write_text(text.replace(known, unknown, 1))
        return ground.train(data=data, root=ground.tmp / data)


@fault("ssv2: a video is missing")
def _(ground):
    root = ground.copy("ssv2")
    (root / "20bn-something-something-v2" / "46.webm").unlink()
    return ground.train(data="ssv2", root=root)


@fault("diving48: a video that cannot be read", RuntimeError, leaves=(*STARTED[2:], "run/rejected-0.jsonl"))
def _(ground):
    root = ground.copy("diving48")
    (root / "rgb" / "-mmq0PT-u8k_00156.mp4").write_bytes(b"no video")
    return ground.train(data="diving48", root=root)


# ---- settings

for flags in r"""
    --data ucf101
    --data mini --root <list>
    --root ''
    --data mini --root '' --annotation <list>
    --temporal none --temporal-layers 4 --cache-gib 2.0 --epochs 3
    --annotation <list>/train.txt
    --annotation <tmp>/gone
    --variant xl
    --host lora
    --backbone resnet50
    --temporal mos
    --temporal-options [1
    --temporal-options [1]
    --temporal-options '{order: 2}'
    --temporal-options '{classes: 2}'
    --temporal-options '{d_hidden: -3}'
    --temporal-options '{orders: [0]}'
    --temporal-options '{window: [4, 9, 9]}'
    --temporal none --temporal-options '{orders: [1]}'
    --temporal-layers six
    --temporal-layers 2,2
    --temporal-layers 3
    --host aim --temporal-layers 9
    --weights vit.pt
    --weights <tmp>/vit.safetensors
    --layer-decay 0.7
    --protocol theirs
    --size-px 50
    --size-px 7
    --frames 0
    --sampling random
    --clips 0
    --crops 2
    --repeats 0
    --randaugment m9
    --randaugment rand-m9-increasing
    --precision half --steps 0 --lr nan --floor 2 --clip-norm 0 --workers -1 --cache ''
    --tracker excel
    --out <list>/train.txt
    --resume <tmp>/gone
    --start <tmp>/gone
""".strip().splitlines():

    @fault(f"`recipes/action_recog.py {flags.strip()}`", (ValueError, OSError))
    def _(ground, flags=flags):
        words = [fill(word, ground) for word in shlex.split(flags)]
        given = {name[2:].replace("-", "_"): value for name, value in zip(*[iter(words)] * 2, strict=True)}
        given |= {"root": None} if given.get("root") == "" else {}  # not given at all
        return ground.train(**given)


# ---- going on, starting from and testing a run


def write_run(run, text):
    (run / "best" / "run.json").write_text(text)


def other_weights(change, pick):
    return lambda run: edit_weights(run / "best" / WEIGHTS_FILE, change, pick)


def more_weights(run):
    file = run / "best" / WEIGHTS_FILE
    save_file({**load_file(file), "ladder.extra": torch.zeros(2)}, file)


def of_the_record(change):
    """Change run.json by what a function of it returns."""

    def edit(run):
        file = run / "best" / "run.json"
        edit_json(file, **change(json.loads(file.read_text())))

    return edit


def nothing(run):
    pass


NORM = "ladder.norm.weight"
for title, damage, given in (
    ("an out folder of another run", nothing, {}),
    ("another seed", nothing, {"resume": "auto", "seed": 1, "steps": 4}),
    ("another number of clips a step", nothing, {"resume": "auto", "clips_a_step": 4, "steps": 4}),
    ("fewer steps", nothing, {"resume": "auto", "steps": 1}),
    ("another module", nothing, {"resume": "auto", "temporal": "none"}),
    ("a start of another host", nothing, {"start": "<tmp>/run/best", "host": "full"}),
    ("a start without a weight", other_weights(lambda tensor: None, "ladder.norm.running_mean"),
     {"start": "<tmp>/run/best"}),
    ("a start with weights that are not finite", other_weights(to_nan, NORM), {"start": "<tmp>/run/best"}),
):  # fmt: skip

    @fault(f"recipes/action_recog.py: {title}", (ValueError, OSError))
    def _(ground, damage=damage, given=given):
        damage(ground.finished_run())
        given = {name: fill(str(value), ground) for name, value in given.items()}
        return ground.train(**given, **({"out": ground.tmp / "next"} if "start" in given else {}))


for title, damage, given in (
    ("weights left over", more_weights, {}),
    ("weights of another shape", other_weights(lambda tensor: torch.ones(7), NORM), {}),
    ("a file that is cut short", lambda run: cut(run / "best" / WEIGHTS_FILE, 10), {}),
    ("no weights", lambda run: (run / "best" / WEIGHTS_FILE).unlink(), {}),
    ("no checkpoint", nothing, {"ckpt": "<tmp>/run"}),
    ("a broken record", lambda run: write_run(run, "{"), {}),
    ("a record of something else", lambda run: write_run(run, "{}"), {}),
    ("a record of a later version", of_the_record(lambda run: {"model": {**run["model"], "depth": 3}}), {}),
    ("another encoder", of_the_record(lambda run: {"encoder_fingerprint": "0123456789abcdef"}), {}),
    ("data with other classes", nothing, {"data": "gym99", "root": "<gym99>"}),
    ("data with classes left out", of_the_record(lambda run: {"classes": run["classes"][:3]}), {}),
    ("unknown data", nothing, {"data": "ucf101"}),
    ("no root", of_the_record(lambda run: {"settings": {"root": None, "annotation": None}}), {}),
    ("two crops", nothing, {"crops": 2}),
):

    @fault(f"eval/action_recog.py: {title}", 2 if title in ("unknown data", "two crops") else 1)
    def _(ground, damage=damage, given=given):
        damage(ground.finished_run())
        return ground.test(**{name: fill(str(value), ground) for name, value in given.items()})


@fault("eval/action_recog.py: a folder with other views", 1)
def _(ground):
    ground.finished_run()
    ground.test(out=ground.tmp / "out")()
    return ground.test(out=ground.tmp / "out", clips=1)


@fault("eval/action_recog.py: a line that is none", 1)
def _(ground):
    ground.finished_run()
    ground.test(out=ground.tmp / "out")()
    (ground.tmp / "out" / "answers" / "00-of-01.jsonl").open("a").write("no line\n")
    return ground.test(out=ground.tmp / "out")
