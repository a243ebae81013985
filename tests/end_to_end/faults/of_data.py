"""Rows, annotation files and videos to train a Video-LLM on.

Each is found by a dry run, but for those that only training can find.
"""

import shutil

import numpy as np
from video_files import write_sound

from faults.engine import PLANNED, STARTED, fault
from moss_vllm.data.rows import BadRow, BadRows

CLIPS = "FAVOR/videos/FAVOR-Train"
REJECTED = (*STARTED, "run/rejected-0.jsonl")


@fault("a data folder that is not there", BadRow)
def _(ground):
    return ground.dry(data=ground.tmp / "gone")


@fault("a data folder without an annotation", BadRow)
def _(ground):
    (ground.favor / "train.json").unlink()
    return ground.dry()


@fault("a data folder with two annotations", BadRow)
def _(ground):
    (ground.favor / "train.json").rename(ground.favor / "a.json")
    (ground.favor / "b.json").write_text("[]")
    return ground.dry()


for title, content in {
    "broken JSON": b'[{"video_name": "a.mp4",\n "caption" "b"}]',
    "an empty annotation file": b"",
    "an empty list": b"[]",
    "NaN in the JSON": b'[{"video_name": "a.mp4", "caption": "b", "start": NaN}]',
    "an annotation that is not UTF-8": b'[{"video_name": "\xff"}]',
    "an object in place of the list": b'{\n"a": 1}',
    "an unknown format": b'[{"clip": "a", "text": "b"}]',
}.items():

    @fault(title, BadRow)
    def _(ground, content=content):
        (ground.favor / "train.json").write_bytes(content)
        return ground.dry()


for title, change in {  # of the fourth row
    "a row without a caption": {"caption": None},
    "a caption that is a number": {"caption": 5},
    "a special token in a caption": {"caption": "It.<|im_end|>"},
    "a video called ../../x.mp4": {"video_name": "../../x.mp4"},
    "a video called /etc/x.mp4": {"video_name": "/etc/x.mp4"},
}.items():

    @fault(title, RuntimeError)
    def _(ground, change=change):
        changed = {**ground.rows[3], **change}
        ground.rows[3] = {name: value for name, value in changed.items() if value is not None}
        ground.write()
        return ground.dry()


@fault("a video captioned twice", RuntimeError)
def _(ground):
    ground.rows.append(ground.rows[3])
    ground.write()
    return ground.dry()


@fault("more rows too long than allowed", RuntimeError, leaves=PLANNED)
def _(ground):
    return ground.train(max_tokens=50)


# ---- videos


@fault("no video at all", BadRows)
def _(ground):
    ground.rows[:] = ground.rows[3:5]
    ground.write()
    shutil.rmtree(ground.favor / "videos")
    return ground.train()


def overwrite_pictures(path):
    data = bytearray(path.read_bytes())
    pictures = slice(data.index(b"mdat") + 10_000, data.index(b"moov") - 4)  # header and first pictures stay
    data[pictures] = np.random.default_rng(0).bytes(pictures.stop - pictures.start)
    path.write_bytes(data)


def make_playlist(path):
    path.write_text(f"ffconcat version 1.0\nfile '{next(path.parent.glob('*.mp4'))}'\n")


for title, damage in {
    "missing videos, more than 1 %": lambda path: path.unlink(),
    "a video of zero bytes": lambda path: path.write_bytes(b""),
    "a text called .mp4": lambda path: path.write_text("Video unavailable\n" * 50),
    "a playlist called .mp4": make_playlist,
    "half of a video": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "a video with sound only": write_sound,
}.items():

    @fault(title, RuntimeError)
    def _(ground, damage=damage):
        damage(ground.clip(3))
        return ground.dry()


@fault("a video with damaged pictures, found in training", RuntimeError, leaves=REJECTED)
def _(ground):
    overwrite_pictures(ground.clip(3))
    return ground.train(batch_size=12, steps=1)


@fault(
    "videos deleted between planning and training",
    RuntimeError,
    leaves=REJECTED,
    changes=tuple(f"{CLIPS}/world_train_0000{number}.mp4" for number in (3, 4)),
)
def _(ground):
    ground.delete_before("train", 3, 4)
    return ground.train(batch_size=12)


@fault(
    "the longest video deleted while the model is opened",
    RuntimeError,
    leaves=REJECTED,
    changes=(f"{CLIPS}/world_train_00003.mp4",),
)
def _(ground):
    ground.delete_before("build_model", 3)
    return ground.train(batch_size=12)


# ---- lists of sources


for title, text, kind in (
    ("a source of weight 0", "- {path: FAVOR, weight: 0}", ValueError),
    ("an unknown key of a source", "- {path: FAVOR, wieght: 2}", ValueError),
    ("a source without a path", "- {weight: 2}", ValueError),
    ("a source that is not there", "- {path: GONE}", BadRow),
    ("a broken list of sources", "- {path: FAVOR", ValueError),
):

    @fault(title, kind)
    def _(ground, text=text):
        (ground.tmp / "mix.yaml").write_text(text)
        return ground.dry(data=ground.tmp / "mix.yaml")
