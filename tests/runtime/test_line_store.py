"""Owns: a folder of answers has one run at a time, and answers of the videos that are there.

Other settings or --overwrite beside a living process, a folder that is removed, a video in another's place:
each ends the run with a message, and nothing that was answered is lost or mixed.
"""

import multiprocessing
import os
import resource
import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest
from launching import ROOT
from PIL import Image

from moss_vllm.evaluation.result import QUESTION_SCHEMA
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.runtime import line_store
from moss_vllm.runtime.errors import RunStopped, errors_in_one_line
from moss_vllm.runtime.files import whole_file, write_whole
from moss_vllm.runtime.line_store import AnswerFile, Fields, Schema, Shard, holds_answers, read_answers
from moss_vllm.runtime.provenance import describe_environment
from moss_vllm.runtime.versions import versions
from moss_vllm.video.file_state import describe_file, refuse_others, tell_change

HEADER = {
    "benchmark": "MotionBench-Dev",
    "checkpoint": "a",
    "questions": 2,
    "protocol": {"name": "letter", "short_side_px": 224},
    "environment": {"av": "17.0"},
}
SCHEMA = Schema(header=Fields({"benchmark": str, "questions": int}), answer=Fields({}))
OTHER = {**HEADER, "protocol": {"name": "letter", "short_side_px": 56}}
LINE = {"video_id": "v", "answers": []}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_with_other_settings_is_refused_beside_a_living_one(tmp_path):
    with AnswerFile(tmp_path, HEADER, Shard(0, 2)):  # which has no answer yet
        told = (
            r"00-of-02\.jsonl: another run writes to it, which has other settings \(protocol\.short_side_px"
        )
        with pytest.raises(
            BlockingIOError, match=f"{told} was 224, is 56\\); wait for it to end, or give ano"
        ):
            AnswerFile(tmp_path, OTHER, Shard())
        elsewhere = {**HEADER, "environment": {"av": "16.0"}}  # another machine of the same run
        AnswerFile(tmp_path, elsewhere, Shard(1, 2)).close()
        AnswerFile(tmp_path, HEADER, Shard()).close()
    AnswerFile(tmp_path, OTHER, Shard(0, 3)).close()  # nobody lives: without an answer nothing is in the way


def outlive(began):
    began.set()
    time.sleep(60)


def test_a_worker_that_outlives_a_run_is_not_in_the_way_of_the_next(tmp_path):
    with AnswerFile(tmp_path, HEADER, Shard()):
        context = multiprocessing.get_context("fork")
        began = context.Event()
        worker = context.Process(target=outlive, args=(began,))
        worker.start()
        assert began.wait(60)
        with pytest.raises(BlockingIOError):  # the worker's end of the file did not release the run's lock
            AnswerFile(tmp_path, HEADER, Shard())
    AnswerFile(tmp_path, HEADER, Shard()).close()
    worker.kill()
    worker.join()


def test_overwriting_beside_a_living_process_is_refused_and_costs_no_answer(tmp_path):
    with AnswerFile(tmp_path, HEADER, Shard(1, 2)) as living:
        living.add(LINE)
        before = living.path.read_bytes()
        for header, shard in ((HEADER, Shard()), (HEADER, Shard(0, 2)), (OTHER, Shard(0, 2))):
            with pytest.raises(BlockingIOError, match="01-of-02.jsonl: another run writes to it, which "):
                AnswerFile(tmp_path, header, shard, overwrite=True)
        living.add(LINE)
        assert living.path.read_bytes() == before + before.splitlines(keepends=True)[1]
    AnswerFile(tmp_path, HEADER, Shard(), overwrite=True).close()
    assert names(tmp_path) == ["00-of-01.jsonl"]
    (tmp_path / "00-of-01.jsonl").write_bytes(b"")  # as a refused run leaves it
    assert read_answers(tmp_path, SCHEMA).header is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_of_one_run_overwrite_together(tmp_path, order):
    for rank, processes in ((0, 1), (0, 2), (1, 2), (1, 3)):
        with AnswerFile(tmp_path, OTHER, Shard(rank, processes)) as file:
            file.add({**LINE, "video_id": "old"})
    first = AnswerFile(tmp_path, HEADER, Shard(order[0], 2), overwrite=True)
    first.add({**LINE, "video_id": f"new {order[0]}"})
    if order[0]:  # the first process may be done before the other begins
        first.close()
    with AnswerFile(tmp_path, HEADER, Shard(order[1], 2), overwrite=True) as second:
        second.add({**LINE, "video_id": f"new {order[1]}"})
    first.close()
    assert names(tmp_path) == ["00-of-02.jsonl", "01-of-02.jsonl"]
    assert read_answers(tmp_path, SCHEMA, HEADER).videos.keys() == {"new 0", "new 1"}


def test_a_process_that_overwrites_leaves_the_file_that_another_is_about_to_begin(tmp_path, monkeypatch):
    alone, first = line_store._alone_in, []

    @contextmanager
    def behind_the_first(folder):
        if not first:
            first.append(None)
            first[0] = AnswerFile(folder, HEADER, Shard(0, 2), overwrite=True)
        with alone(folder):
            yield

    monkeypatch.setattr(line_store, "_alone_in", behind_the_first)
    with AnswerFile(tmp_path, HEADER, Shard(1, 2), overwrite=True) as second, first[0]:
        second.add(LINE)
        first[0].add({**LINE, "video_id": "w"})
    assert names(tmp_path) == ["00-of-02.jsonl", "01-of-02.jsonl"]
    assert sorted(read_answers(tmp_path, SCHEMA, HEADER).videos) == ["v", "w"]


@pytest.mark.parametrize("how", ["removed", "renamed", "made again"])
def test_a_folder_that_is_gone_ends_the_run(tmp_path, how):
    folder = tmp_path / "answers"
    with AnswerFile(folder, HEADER, Shard()) as file:
        file.add(LINE)
        shutil.move(folder, tmp_path / "moved") if how == "renamed" else shutil.rmtree(folder)
        if how == "made again":
            AnswerFile(folder, HEADER, Shard()).close()
        with pytest.raises(
            RunStopped, match="00-of-01.jsonl is gone: it or its folder was removed or renamed"
        ):
            file.add(LINE)
        with pytest.raises(RunStopped):
            file.check()


def test_what_the_environment_was_is_no_reason_to_refuse_and_is_told(tmp_path):
    for rank, av in enumerate(("17.0", "16.0", "17.0")):
        with AnswerFile(tmp_path, {**HEADER, "environment": {"av": av}}, Shard(rank, 3)) as file:
            file.add({**LINE, "video_id": f"v{rank}"})
    told = ["not everything was computed with the same: av 17.0 and 16.0"]
    assert read_answers(tmp_path, SCHEMA, HEADER).tell_mixed() == told
    stored = read_answers(tmp_path, SCHEMA)
    assert stored.environment == {"av": "17.0"} and stored.tell_mixed() == told
    assert stored.tell_mixed({"av": "18.1", "torch": "2.12"}) == [f"{told[0]} and 18.1"]


def test_the_environment_has_what_decides_frames(tiny_base):
    from moss_vllm.vlm import checkpoint

    found = describe_environment(checkpoint.load(str(tiny_base)).model)
    assert versions().items() < found.items() and "attention" in found
    assert (found["device"], found["dtype"]) == ("cpu", "float32")


def folder_of_frames(path, count=20, bright=0):
    path.mkdir()
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number + bright, np.uint8)).save(path / f"{number}.png")
    return path


def test_another_file_in_a_videos_place_is_told_from_a_copy(tmp_path):
    rng = np.random.default_rng(0)
    for size in (10, 300_000, 3_000_000):
        file = tmp_path / f"{size}.mp4"
        data = bytearray(rng.bytes(size))
        file.write_bytes(data)
        state = describe_file(file)
        assert state["bytes"] == size and tell_change(file, state) == ""
        os.utime(file, (1, 1))  # as a copy, or a download done again, leaves it
        assert tell_change(file, state) == "" and describe_file(file)["contents"] == state["contents"]
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, (1, 1))
        assert f"was {size:,} bytes of 20" in tell_change(file, state)
        assert tell_change(file, state).endswith("with other contents")
        file.write_bytes(data + b"1")
        assert f"is {size + 1:,} bytes of" in tell_change(file, state)
        file.unlink()
        assert tell_change(file, state) == "" and describe_file(file) is None


def test_folders_of_images_are_known_by_their_images(tmp_path):
    frames = folder_of_frames(tmp_path / "frames")
    state = describe_file(frames)
    size = f"was {state['bytes']:,} bytes"
    (frames / "notes.txt").write_text("none of the video")
    assert tell_change(frames, state) == ""
    shutil.copytree(frames, tmp_path / "copy", copy_function=shutil.copyfile)
    assert tell_change(tmp_path / "copy", state) == ""
    assert size in tell_change(folder_of_frames(tmp_path / "other", bright=9), state)
    (frames / "7.png").unlink()
    assert size in tell_change(frames, state)
    os.mkfifo(frames / "99.png")
    assert describe_file(frames) is None  # a pipe may never end


def test_all_videos_that_changed_are_counted(tmp_path):
    paths, states = {}, {}
    for number in range(12):
        paths[f"v{number}"] = tmp_path / f"{number}.mp4"
        paths[f"v{number}"].write_bytes(b"0")
        states[f"v{number}"] = describe_file(paths[f"v{number}"])
        paths[f"v{number}"].write_bytes(b"11")
    with pytest.raises(ValueError, match="asked about: 12\n  v0: .*0.mp4 was 1 bytes") as told:
        refuse_others(paths, states)
    lines = str(told.value).splitlines()
    assert len(lines) == 13 and lines[11] == "  and 2 more" and "--overwrite" in lines[12]
    refuse_others(paths, {})  # of answers that an earlier version gave


def test_a_full_disk_is_told_with_the_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # as a disk does, it refuses a write and names no file
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SystemExit) as ended, errors_in_one_line():
            write_whole(tmp_path / "result.json", "0" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wanted = f"error: {tmp_path / 'result.json'} cannot be written (File too large); make room there or name"
    assert str(ended.value).startswith(wanted) and names(tmp_path) == []
    with pytest.raises(OSError, match=r"file/result\.json cannot be written \(File exists\)"):
        (tmp_path / "file").touch()
        write_whole(tmp_path / "file" / "result.json", "")
    with pytest.raises(FileNotFoundError, match="nowhere"):  # another's error keeps its name
        with whole_file(tmp_path / "result.json"):
            (tmp_path / "nowhere").read_text()


def _check_segment(answer):
    if answer["start_s"] >= answer["end_s"]:
        raise ValueError(f"segment {answer['uid']} ends at {answer['end_s']}")


SEGMENTS = Schema(
    header=Fields({"dataset": str, "views": dict}),
    parts={"views": Fields({"window_s": (int, float)})},
    answer=Fields({"start_s": float, "end_s": float, "label": str}, {"score": float}),
    check_answer=_check_segment,
)
SEGMENT = {"uid": "v/0", "start_s": 1.0, "end_s": 2.5, "label": "dive", "score": 0.5}


def test_a_tasks_own_schema_decides_what_a_line_holds(tmp_path):
    header = {"dataset": "thumos14", "views": {"window_s": 8}, "environment": {"av": "17.0"}}
    with AnswerFile(tmp_path / "answers", header, Shard()) as file:
        file.add({"video_id": "v", "answers": [SEGMENT, {**SEGMENT, "uid": "v/1", "end_s": 9.0}]})
        file.add({"video_id": "w", "answers": []})
    assert holds_answers(tmp_path) and not holds_answers(tmp_path / "answers")
    stored = read_answers(tmp_path / "answers", SEGMENTS, header)
    assert stored.answers["v/0"] == {"video_id": "v", **SEGMENT} and list(stored.videos) == ["v", "w"]
    for change, reason in (
        ({"label": 3}, "its 'label' is 3"),
        ({"score": "high"}, "its 'score' is 'high'"),
        ({"end_s": 0.5}, "segment v/0 ends at 0.5"),
        ({"uid": None}, "its 'uid' is None"),
    ):
        with AnswerFile(tmp_path / "answers", header, Shard(), overwrite=True) as file:
            file.add({"video_id": "v", "answers": [{**SEGMENT, **change}]})
        with pytest.raises(ValueError, match=rf"line 2 is no line of an answer store \({reason}\)"):
            read_answers(tmp_path / "answers", SEGMENTS)
    for header, reason in (
        ({"dataset": "thumos14"}, "it has no 'views'"),
        ({"dataset": "thumos14", "views": {"window_s": None}}, "its 'window_s' is None"),
        ({"dataset": "thumos14", "views": {"window_s": 8}, "environment": 1}, "its 'environment' is 1"),
    ):
        with AnswerFile(tmp_path / "answers", header, Shard(), overwrite=True):
            with pytest.raises(ValueError, match=f"line 1 is no line of an answer store .{reason}"):
                read_answers(tmp_path / "answers", SEGMENTS)


def test_a_pipe_among_the_answers_is_refused(tmp_path):
    (tmp_path / "answers").mkdir()
    os.mkfifo(tmp_path / "answers" / "00-of-01.jsonl")
    with pytest.raises(ValueError, match=r"00-of-01\.jsonl is not a regular file; remove it, or"):
        holds_answers(tmp_path)


@pytest.mark.parametrize(
    "folder, schema, told",
    [
        (
            "class_answers",
            QUESTION_SCHEMA,
            r"of another task \(list\); name what was --out of eval/motionbench",
        ),
        (
            "answers",
            CLIP_SCHEMA,
            r"of another task \(MotionBench-Dev\); name one that eval/action_recog.py wrote",
        ),
    ],
)
def test_answers_of_another_task_are_named_before_their_lines_are_read(folder, schema, told):
    with pytest.raises(ValueError, match=rf"{folder} holds answers {told}"):
        read_answers(ROOT / "tests" / "data_of_earlier" / folder / "answers", schema)
