"""Owns: a page's frames are the videos' own, wrong answers first, within the budget."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from answer_folders import LETTER, ask, in_turn, question
from pages import write
from PIL import Image

from moss_vllm.data.rows import BenchmarkVideo
from moss_vllm.evaluation.protocols import MOTIONBENCH
from moss_vllm.report import strips
from moss_vllm.report.answer_files import read_results
from moss_vllm.video.clip import Sampling, read_clip


def test_strips_are_frames_of_the_videos_at_their_times(small, motion):
    page = write(small)
    paths = {video.video_id: video.path for video in motion[:12]}
    assert len(page.data["strips"]) == 11 and "Frames are shown of 11 of 11 videos" in page.text
    for place, strip in page.data["strips"].items():
        clip = read_clip(
            paths[page.data["videos"][int(place)]], Sampling(sample_fps=2.0, short_side_px=112, max_frames=8)
        )
        assert strip["times"] == clip.frame_times_s.round(2).tolist() and 1 < len(strip["times"]) <= 8
        assert strip["size"] == [clip.frames.shape[2], clip.frames.shape[1]]
        for frame, pixels in zip(strip["frames"], clip.frames, strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(frame)))
            assert image.format == "JPEG"
            assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 8


def test_videos_of_wrong_answers_come_first_and_tasks_take_turns(tmp_path):
    rows = [  # video, task, right?
        ("a", "MR", True),
        ("b", "MR", False),
        ("c", "MR", False),
        ("d", "CM", False),
        ("e", "CM", True),
        ("f", "CM", False),
        ("c", "CM", True),
    ]
    asked = {}
    for number, (video, task, right) in enumerate(rows):
        asked.setdefault(video, []).append(question(f"{number}", task, "A" if right else "B"))
    videos = [BenchmarkVideo(video, Path(video), tuple(some)) for video, some in asked.items()]
    ask(tmp_path, videos, MOTIONBENCH, LETTER, in_turn("A"))
    assert strips.choose_videos(read_results(tmp_path).asked) == ["b", "d", "c", "f", "a", "e"]


@pytest.mark.parametrize("number", [0, 4, 500])
def test_the_budget_is_kept_and_said(small, number):
    page = write(small, "--strips", str(number))
    shown = min(number, 11)
    assert len(page.data["strips"]) == shown and f"Frames are shown of {shown} of 11 videos" in page.text
    if number == 4:
        outcomes = page.outcomes()
        wrong = {row[1] for uid, row in page.questions.items() if outcomes[uid] in ("wrong", "not read")}
        assert {int(place) for place in page.data["strips"]} <= wrong


def test_strips_stop_before_their_most_bytes(noise_clip):
    paths = {f"v{n}": f"{n}" for n in range(20)}

    def read(path, **_):
        return noise_clip(int(path), frames=2)

    every = strips.read_strips(paths, 2.0, read=read)
    sizes = [sum(map(len, strip["frames"])) for strip in every.values()]
    some = strips.read_strips(paths, 2.0, sum(sizes[:7]), read=read)
    assert list(some) == list(paths)[:7] and some == {video: every[video] for video in some}


def test_videos_that_cannot_be_read_have_a_reason(small, motion, tmp_path):
    answers = small / "answers" / "00-of-01.jsonl"
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(motion[1].path.read_bytes()[:500])
    text = answers.read_text().replace(str(motion[0].path), str(tmp_path / "gone.mp4"))
    answers.write_text(text.replace(str(motion[1].path), str(torn)))
    page = write(small)
    strip = {page.data["videos"][int(place)]: strip for place, strip in page.data["strips"].items()}
    assert str(tmp_path / "gone.mp4") in strip[motion[0].video_id]["failed"]
    assert str(torn) in strip[motion[1].video_id]["failed"]
    assert "Frames are shown of 9 of 11 videos" in page.text
    assert re.search(r"2 videos cannot be read now: \w+, \w+\.", page.text)

    def fail(path, **_):
        raise MemoryError

    assert strips.read_strips({"v": "v"}, 2.0, read=fail) == {"v": {"failed": "MemoryError"}}
