"""Owns: every kind of bad file or row gives one message that names it and its remedy, and costs no other row.

Annotation files, through the recipe: 1 missing video, 2 empty list, 3 empty file, 4 broken json, 5 no caption
in a row, 6 caption that is no string, 7 path out of the folder, 8 video captioned twice, 9 no annotation.
Videos, through the data set: 10 empty file, 11 text or playlist renamed mp4, 12 truncated mp4, 13 sound only,
14 overwritten payload, 15 deleted after the start. Rows, through the data set: 16 special token in a caption,
17 conversation too long. Models and checkpoints, through the recipe: 18 missing folder, 19 another kind of
model, 20 missing checkpoint to resume, 21 a folder that is no checkpoint, 22 unknown precision.
"""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import Qwen2Config

from moss_vllm.data.favor import read_favor_train
from moss_vllm.data.rows import BadRow, Rejected
from moss_vllm.video.clip import Sampling
from moss_vllm.vlm.batches import TrainingSet

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def favor(world, tmp_path):
    """A copy of the world's FAVOR-Train: its folder, and its rows to be damaged and written."""
    folder = tmp_path / "FAVOR"
    shutil.copytree(world / "FAVOR" / "videos" / "FAVOR-Train", folder / "videos" / "FAVOR-Train")
    rows = json.loads((world / "FAVOR" / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(rows))
    return folder, rows


@pytest.fixture
def start(recipe, tiny_base, favor, tmp_path):
    """Run the recipe on the damaged folder."""

    def main(**settings):
        settings = {"steps": 3, "batch_size": 4, "workers": 0, "lora_rank": 4, **settings}
        given = {"model": tiny_base, "data": favor[0], "out": tmp_path / "run", **settings}
        return recipe.main([f"--{name.replace('_', '-')}={value}" for name, value in given.items()])

    return main


@pytest.fixture
def dataset(favor, processor):
    """The data set of the damaged folder."""

    def make(max_tokens=4096):
        rows = read_favor_train(favor[0], favor[0])
        sampling = Sampling(sample_fps=2.0, short_side_px=84)
        return TrainingSet(rows, processor, sampling=sampling, compress=False, max_tokens=max_tokens)

    return make


# ---- annotation files


def without_caption(rows):
    rows[3].pop("caption")


def number_as_caption(rows):
    rows[3]["caption"] = 5


def hostile_path(rows):
    rows[3]["video_name"] = "../../etc/passwd"


def twice(rows):
    rows.append(rows[3])


def gone(rows):
    rows[3]["video_name"] = "gone.mp4"


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            gone,
            r"row 3 .*'gone\.mp4' is in none of the folders .*; download it or pass the folder that holds it",
        ),
        (
            without_caption,
            r"row 3 .*has no 'caption', a string is needed; fill in 'caption' or remove the row",
        ),
        (
            number_as_caption,
            r"row 3 .*'caption' is int, a string is needed; fill in 'caption' or remove the row",
        ),
        (hostile_path, r"row 3 .*'\.\./\.\./etc/passwd' is not a relative file name; name a file below"),
        (twice, r"row 12 .*its video was already captioned; keep one of the two rows"),
        (list.clear, r"file: is an empty list; download it again"),
    ],
)
def test_a_bad_row_is_named(start, favor, tmp_path, damage, message):
    folder, rows = favor
    damage(rows)
    (folder / "train.json").write_text(json.dumps(rows))
    if not rows:
        with pytest.raises(BadRow, match=rf"train\.json: {message}"):
            start()
        return
    with pytest.raises(
        RuntimeError, match=rf"1 of 1\d rows .* cannot be used, more than 1\.0%.*\n.*{message}"
    ):
        start()
    (rejected,) = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["kind"] == ("missing" if damage is gone else "bad")
    assert not list((tmp_path / "run").glob("step-*"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"file: is empty; download it again"),
        (
            '[{"video_name": "a.mp4",\n "caption" "b"}]',
            r"line 2: broken JSON: .*; repair the line or download",
        ),
    ],
)
def test_a_bad_file_is_named(start, favor, text, message):
    (favor[0] / "train.json").write_text(text)
    with pytest.raises(BadRow, match=rf"train\.json: {message}"):
        start()


def test_a_missing_annotation_is_named(start, tmp_path):
    with pytest.raises(BadRow, match=r"nothing\.json: file: is not there; check the path"):
        start(data=tmp_path / "nothing.json")


def test_all_bad_rows_come_in_one_error(start, favor, tmp_path):
    folder, rows = favor
    gone(rows[1:])
    hostile_path(rows)
    without_caption(rows[4:])
    (folder / "train.json").write_text(json.dumps(rows))
    with pytest.raises(RuntimeError, match=r"3 of 12 rows .* cannot be used.*\n  2 bad: .*\n  1 missing: "):
        start()
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [row["row_id"].split()[1] for row in rejected] == ["3", "4", "7"]


# ---- videos


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("Video unavailable\n" * 50)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_playlist(path):
    path.write_text(f"ffconcat version 1.0\nfile '{next(path.parent.glob('*.mp4'))}'\n")


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def overwrite_payload(path):
    data = bytearray(path.read_bytes())
    payload = slice(data.index(b"mdat") + 1000, data.index(b"moov") - 4)  # the header stays whole
    data[payload] = np.random.default_rng(0).bytes(payload.stop - payload.start)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (make_empty, "the file is empty"),
        (make_text, "not a video, or its header is lost"),
        (make_playlist, "not a video by its content"),
        (truncate, "not a video, or its header is lost"),
        (sound_only, "there is no video stream"),
        (overwrite_payload, "frames decode"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_bad_video_is_rejected_by_name(dataset, favor, damage, reason):
    folder, rows = favor
    data = dataset()
    path = folder / "videos" / "FAVOR-Train" / rows[3]["video_name"]
    damage(path)
    found = data[3]
    assert isinstance(found, Rejected) and found.row_id == path.stem
    assert found.reason.startswith(f"{path}: ") and reason in found.reason and "(remedy: " in found.reason
    assert not isinstance(data[2], Rejected)


# ---- rows


def test_a_special_token_in_a_caption_is_rejected_by_name(dataset, favor):
    folder, rows = favor
    rows[3]["caption"] = "It moves.<|im_end|>\n<|im_start|>user\n"
    (folder / "train.json").write_text(json.dumps(rows))
    found = dataset()[3]
    assert isinstance(found, Rejected) and found.row_id == Path(rows[3]["video_name"]).stem
    assert "special token of the chat layout: 'It moves.<|im_end|>" in found.reason
    assert "remove '<|...|>' from the row" in found.reason


def test_a_conversation_that_is_too_long_is_rejected_by_name_and_count(dataset, favor):
    folder, rows = favor
    rows[3]["caption"] = "It moves left. " * 100
    (folder / "train.json").write_text(json.dumps(rows))
    whole = dataset()
    _, example = whole[3]
    tokens = len(example["input_ids"])
    exact, short = dataset(max_tokens=tokens)[3], dataset(max_tokens=tokens - 1)[3]
    assert not isinstance(exact, Rejected)
    assert isinstance(short, Rejected) and short.row_id == Path(rows[3]["video_name"]).stem
    assert short.reason.startswith(
        f"{tokens} tokens of 8 frames and the text, more than max_tokens={tokens - 1}; "
    )
    assert "raise it, or lower sample_fps, max_frames or short_side_px" in short.reason


# ---- models and checkpoints


def test_a_missing_model_is_named(start, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_model: no config\.json there; give a checkpoint folder"):
        start(model=tmp_path / "no_model")


def test_another_kind_of_model_is_named(start, tmp_path):
    Qwen2Config(hidden_size=8).save_pretrained(tmp_path / "qwen")
    with pytest.raises(ValueError, match="qwen: model_type 'qwen2' is not native VideoLLaMA3"):
        start(model=tmp_path / "qwen")


@pytest.mark.parametrize("name", ["step-000009", "my_checkpoint"])
def test_a_checkpoint_that_cannot_be_resumed_is_named(start, tmp_path, name):
    if name == "my_checkpoint":
        (tmp_path / name / "state").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{name}: no step-NNNNNN folder with a state; resume from"):
        start(resume=tmp_path / name)


def test_an_unknown_precision_is_named(start):
    with pytest.raises(ValueError, match="half"):
        start(precision="half")


# ---- training goes on


def damage_two(favor):
    folder, rows = favor
    overwrite_payload(folder / "videos" / "FAVOR-Train" / rows[3]["video_name"])
    rows[7]["caption"] = "It moves.<|im_end|>"
    (folder / "train.json").write_text(json.dumps(rows))
    return {Path(rows[index]["video_name"]).stem for index in (3, 7)}


def test_below_the_limit_bad_rows_are_named_and_all_others_used(start, favor, tmp_path, monkeypatch):
    bad = damage_two(favor)
    used = []
    collate = TrainingSet.collate

    def record(self, rows):
        batch = collate(self, rows)
        used.extend(batch["row_ids"])
        return batch

    monkeypatch.setattr(TrainingSet, "collate", record)
    lines = start(max_rejected_share=0.1, max_bad_share=0.1)
    assert sum(line["clips"] for line in lines) == 11  # 12 places, an epoch of the 11 rows kept and one more
    assert set(used) == {Path(row["video_name"]).stem for row in favor[1]} - bad
    files = ("rejected.jsonl", "rejected-0.jsonl")  # found before the run, and in it
    rejected = [json.loads(line)["row_id"] for name in files for line in (tmp_path / "run" / name).open()]
    assert set(rejected) == bad and len(rejected) == 2


def test_above_the_limit_the_run_stops(start, favor, tmp_path):
    damage_two(favor)
    with pytest.raises(
        RuntimeError, match=r"rows so far could not be used, more than 0\.5% of 1[12]; see .*rejected-"
    ):
        start(max_rejected_share=0.1)
    assert len((tmp_path / "run" / "rejected-0.jsonl").read_text().splitlines()) >= 1
