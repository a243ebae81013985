"""Owns: an evaluation's page has the numbers of its result.json, every answer, and its frames."""

import base64
import html
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report
from PIL import Image

import moss_vllm
from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation import asking
from moss_vllm.evaluation.asking import collect
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH
from moss_vllm.report import run_files, strips
from moss_vllm.report.answer_files import read_results
from moss_vllm.report.choices import confusion
from moss_vllm.runtime.line_store import AnswerFile, Shard, read_answers
from moss_vllm.runtime.screen import plain
from moss_vllm.video.clip import read_clip

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror='hacked = 1'>&amp;\0<!--\u2028"""
LETTER = MOTIONBENCH.protocols["letter"]
OFFICIAL = FAVOR_BENCH.protocols["favor_official"]


def ask(out, videos, benchmark, protocol, said, *, failed=None, total=None, limit=None, save=True):
    """What eval/*.py leaves in `out` where `said` gives the output (or log-likelihoods) to each question."""
    failed = failed or {}
    questions = [question for video in videos for question in video.questions]
    header = {"benchmark": benchmark.name, "checkpoint": "base", "weights": "0" * 16}
    header |= {"protocol": protocol.settings, "questions": total or len(questions), "data": "1" * 16}
    header |= {"versions": {"torch": "2"}, "run": {}}
    with AnswerFile(out / "answers", header, Shard()) as file:
        for video in videos:
            if video.video_id in failed:
                file.add({"video_id": video.video_id, "failed": failed[video.video_id], "answers": []})
                continue
            answers = [answer(question, protocol, said(question)) for question in video.questions]
            seconds = {"decode": 0.5, "encode": 1.0, "prefill": 0.25, "answer": 0.25}
            about = {"frames": 8, "shared_tokens": 200, "seconds": seconds}
            file.add({"video_id": video.video_id, "path": str(video.path), **about, "answers": answers})
    result = collect(
        read_answers(out / "answers"), videos, benchmark, protocol, limit, allow_missing=bool(failed)
    )
    if save:
        result.save(out)
    return result


def answer(question, protocol, said):
    scores = {"log_likelihood": said} if isinstance(said, dict) else {}
    output = max(said, key=said.get) if scores else said
    correct, parsed = protocol.judge(output, question)
    return {
        "uid": question.uid,
        "task": question.task,
        "question": question.text,
        "options": list(question.options),
        "prompt": protocol.prompt(question),
        "output": output,
        "parsed": parsed,
        "answer": question.answer,
        "correct": None if question.answer is None else correct,
        **scores,
    }


def in_turn(*outputs):
    """A model that gives these outputs, over and over."""
    left = []

    def say(question):
        left[:] = left or outputs
        return left.pop(0)

    return say


class Page(HTMLParser):
    """Tags, attributes, visible text, rows of tables by their first cell, and the script's data."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words, self.cells = [], [], [], []
        self.hidden = self.in_cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.S)[1])
        self.questions = {row[0] or self.data["videos"][row[1]]: row for row in self.data["questions"]}

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.hidden = tag in ("script", "style")
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.hidden, self.in_cell = False, self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)
            if self.in_cell:
                self.cells[-1][-1] += data

    def row(self, name):
        return next(cells for cells in self.cells if cells[0] == name)[1:]

    def outcomes(self):
        return {uid: self.data["outcomes"][row[3]] for uid, row in self.questions.items()}


def write(folder, *more):
    return Page(report.main([str(folder), *more]))


@pytest.fixture(scope="module")
def motion(world):
    return read_motionbench(world / "MotionBench", world / "MotionBench", split="all", allow_missing=True)


@pytest.fixture(scope="module")
def favor(world):
    return read_favor_bench(world / "FAVOR", world / "FAVOR")


@pytest.fixture
def small(motion, tmp_path):
    """The answers of twelve videos, one of them failed."""
    out = tmp_path / "small"
    failed = {motion[2].video_id: "its header is lost"}
    ask(out, motion[:12], MOTIONBENCH, LETTER, in_turn("A", "B", "(C) it moves", "hm"), failed=failed)
    return out


@pytest.mark.parametrize("benchmark", [MOTIONBENCH, FAVOR_BENCH], ids=lambda one: one.name)
@pytest.mark.parametrize("failing", [0, 3])
def test_numbers_are_those_of_result_json(motion, favor, tmp_path, benchmark, failing):
    videos = motion if benchmark is MOTIONBENCH else favor
    failed = {video.video_id: "its header is lost" for video in videos[:failing]}
    for name, protocol in benchmark.protocols.items():
        out = tmp_path / name
        said = in_turn("A", "moves up slowly", "", "(B) turns", "B", "clockwise")
        if name == "likelihood":
            said = in_turn({"A": -1.5, "B": -0.5}, {"A": -0.25, "B": -2.0, "C": -3.0})
        ask(out, videos, benchmark, protocol, said, failed=failed)
        told, page = json.loads((out / "result.json").read_text()), write(out, "--strips", "0")
        tasks = page.row("%")
        assert set(tasks) == set(told["counts"]["total"]) and tasks[0] == "all"
        some = [task for task in tasks if told["counts"]["total"][task]]
        shown = {key: dict(zip(tasks, page.row(key), strict=True)) for key in ("base", "95 % interval")}
        assert {task: shown["base"][task] for task in some} == {
            task: f"{told['accuracy_percent'][task]:.1f}" for task in some
        }
        spans = told["interval_95_percent"]
        assert {task: shown["95 % interval"][task] for task in some} == {
            task: "{:.1f} to {:.1f}".format(*spans[task]) for task in some
        }
        for row, key in (("right", "correct"), ("questions", "total")):
            found = next(cells for cells in page.cells if cells[0] == row and len(cells) == len(tasks) + 1)
            assert found[1:] == [str(told["counts"][key][task]) if task in some else "-" for task in tasks], (
                row
            )
        assert page.row("answers that name an option") == [
            str(told["counts"]["answered"][task]) if task in some else "-" for task in tasks
        ]
        assert page.row("chance (this data)")[0] == f"{told['chance_percent']['all']:.1f}"
        outcomes = list(page.outcomes().values())
        assert (
            outcomes.count("right") == told["counts"]["correct"]["all"]
            and outcomes.count("failed") == failing
        )
        assert outcomes.count("right") + outcomes.count("wrong") == told["counts"]["answered"]["all"]
        assert f"Complete: all {told['questions']:,} questions" in page.text
        assert f"Protocol {protocol}" in page.text


def test_the_papers_rows_stand_beside_with_a_note_where_the_data_differ(small):
    page = write(small, "--strips", "0")
    assert page.row("VideoLLaMA3-2B (paper)") == ["50.2", "54.9", "54.2", "36.1", "68.3", "37.0", "27.3"]
    assert page.row("%") == ["all", "MR", "LM", "CM", "MO", "AO", "RC"]
    asked = json.loads((small / "result.json").read_text())["counts"]["total"]["all"]
    assert (
        f"{asked} questions are scored, the published benchmark has 4,018: the paper's rows are not"
        in page.text
    )
    bars = re.findall(r"<title>(.*?)</title><rect", page.source)
    assert "+ FAVOR-Train + MOSS (paper), CM: 48.3" in bars
    told = json.loads((small / "result.json").read_text())
    low, high = told["interval_95_percent"]["all"]
    assert f"base, all: {told['accuracy_percent']['all']:.1f} ({low:.1f} to {high:.1f})" in bars
    (tall,) = re.findall(r"\+ MOSS \(paper\), MR: 59\.7</title><rect [^>]*height=\"([\d.]+)\"", page.source)
    (short,) = re.findall(r"\(paper\), CM: 36\.1</title><rect [^>]*height=\"([\d.]+)\"", page.source)
    assert float(tall) / float(short) == pytest.approx(59.7 / 36.1, rel=2e-3)


def question(uid, task, answer, options=("left", "right", "up")):
    return Question(uid, task, f"Where to, {uid}?", options, answer, f"Where to, {uid}?")


def test_the_matrix_has_right_and_chosen_letters(tmp_path):
    said = {"a": "A", "b": "A", "c": "B", "d": "nothing", "e": "C", "f": "b", "g": "A"}
    right = {"a": "A", "b": "B", "c": "B", "d": "B", "e": "A", "f": "C", "g": None}
    tasks = {"a": "MR", "b": "MR", "c": "CM", "d": "CM", "e": "MR", "f": "MR", "g": "MR"}
    asked = tuple(question(uid, tasks[uid], right[uid]) for uid in said)
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], MOTIONBENCH, LETTER, lambda q: said[q.uid])
    results = read_results(tmp_path)
    assert confusion(results.asked) == {
        0: {0: 1, 2: 1},
        1: {0: 1, 1: 1, "no option": 1},
        2: {"no option": 1},
        "withheld": {0: 1},
    }
    page = write(tmp_path, "--strips", "0")
    matrix = [cells for cells in page.cells if len(cells) == 7]
    assert matrix[:6] == [
        ["right", "A", "B", "C", "no option", "answers", "right, %"],
        ["A", "1", "·", "1", "·", "2", "50.0"],
        ["B", "1", "1", "·", "1", "3", "33.3"],
        ["C", "·", "·", "·", "1", "1", "0.0"],
        ["withheld", "1", "·", "·", "·", "1", "-"],
        ["chosen", "3", "1", "1", "2", "7", ""],
    ]
    assert ["B", "·", "1", "·", "1", "2", "50.0"] in matrix[6:]  # CM alone
    bars = re.findall(r"<title>(is .*?)</title>", page.source)
    assert (
        "is right, B: 50.0" in bars and "is chosen, A: 33.3" in bars and "is chosen, no option: 33.3" in bars
    )
    assert page.outcomes() == dict(
        zip("abcdefg", ["right", "wrong", "right", "not read", "wrong", "not read", "withheld"], strict=True)
    )


def test_the_matrix_of_favors_own_protocol_has_positions(tmp_path):
    options = ("moves left", "moves left; then up", "stays still")
    said = {
        "a": "It Moves Left",
        "b": "moves left; then up",
        "c": "stays still, or moves left",
        "d": "C",
        "e": "stays still",
    }
    right = {
        "a": "moves left",
        "b": "moves left",
        "c": "stays still",
        "d": "moves left",
        "e": "stays still",
    }
    asked = tuple(question(uid, "CM", right[uid], options) for uid in said)
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], FAVOR_BENCH, OFFICIAL, lambda q: said[q.uid])
    page = write(tmp_path, "--strips", "0")
    start = next(
        number for number, cells in enumerate(page.cells) if cells[0] == "right" and "several" in cells
    )
    assert page.cells[start : start + 4] == [
        ["right", "1", "2", "3", "several", "no option", "answers", "right, %"],
        ["1", "1", "1", "·", "·", "1", "3", "33.3"],
        ["3", "·", "·", "1", "1", "·", "2", "100.0"],
        ["chosen", "1", "1", "1", "1", "1", "5", ""],
    ]
    chosen = {uid: (row[6], row[7]) for uid, row in page.questions.items()}
    assert chosen == {"a": (0, [0]), "b": (0, [1]), "c": (2, [0, 2]), "d": (0, []), "e": (2, [2])}
    assert page.data["letters"] is False
    assert confusion(read_results(tmp_path).asked) == {
        0: {0: 1, 1: 1, "no option": 1},
        2: {"several": 1, 2: 1},
    }


def test_every_answer_is_there_as_it_was_said(motion, tmp_path):
    scores = {"A": -1.25, "B": -0.5, "C": float("nan")}
    ask(tmp_path, motion[:6], MOTIONBENCH, MOTIONBENCH.protocols["likelihood"], lambda q: scores)
    page = write(tmp_path, "--strips", "0")
    kept = read_answers(tmp_path / "answers").answers
    assert set(page.questions) == set(kept)
    for uid, record in kept.items():
        _, video, task, _, text, options, right, chosen, output, told = page.questions[uid]
        assert page.data["videos"][video] == record["video_id"] and text == record["question"]
        assert page.data["tasks"][task][0] == record["task"] and options == record["options"]
        assert (
            "ABCDEF".index(record["answer"]) == right and output == record["output"] == "B" and chosen == [1]
        )
        assert told == {"A": "-1.25", "B": "-0.50", "C": "nan"}


def test_time_and_sizes_are_those_of_the_videos(small):
    page = write(small, "--strips", "0")
    assert page.row("decode") == ["5.5", "25.0", "0.500", "0.500"]  # of eleven videos
    assert page.row("encode") == ["11.0", "50.0", "1.000", "1.000"]
    assert page.row("frames of a video") == ["8", "8", "8", "88"]
    assert page.row("tokens its questions share") == ["200", "200", "200", "2,200"]


def test_a_killed_evaluation_is_shown_as_far_as_it_got(motion, tmp_path):
    ask(tmp_path, motion[:5], MOTIONBENCH, LETTER, in_turn("A", "B"), total=300, save=False)
    file = tmp_path / "answers" / "00-of-01.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the last line is torn
    page = write(tmp_path, "--strips", "0")
    asked = [q.uid for video in motion[:4] for q in video.questions]
    assert set(page.questions) == set(asked)
    assert f"Partial: {len(asked)} of 300 questions" in page.text
    assert "result.json is not there, for the evaluation did not come to its end" in page.text


def test_a_result_of_another_time_is_left_out_and_said(motion, tmp_path):
    ask(tmp_path, motion[:8], MOTIONBENCH, LETTER, in_turn("A"), limit=3)
    page = write(tmp_path, "--strips", "0")
    kept = len(page.questions)
    assert (
        f"result.json tells of 3 questions, at another time or of another run; this page counts the {kept}"
        in page.text
    )
    questions = next(cells for cells in page.cells if cells[0] == "questions")
    public = sum(q.answer is not None for video in motion[:8] for q in video.questions)
    assert questions[1] == str(public)
    for broken in ("{", "[]", '{"asked": 3}'):
        (tmp_path / "result.json").write_text(broken)
        assert (
            "result.json is left out, it is no result of this version"
            in write(tmp_path, "--strips", "0").text
        )


def test_failed_videos_are_named_and_count_as_wrong(small, motion):
    page, gone = write(small, "--strips", "0"), motion[2]
    wrong, unseen = sum(q.answer is not None for q in gone.questions), len(gone.questions)
    noun = "question" if unseen == 1 else "questions"
    told = f"1 video missing or unreadable, of their {unseen} {noun} {wrong} count as wrong"
    assert f"{told}: {gone.video_id}: its header is lost" in page.text
    row = page.questions[gone.video_id]
    assert row[4] == "its header is lost" and page.outcomes()[gone.video_id] == "failed"
    secret = next(video for video in motion if all(q.answer is None for q in video.questions))
    out = small.parent / "secret"
    ask(out, [motion[0], secret], MOTIONBENCH, LETTER, in_turn("A"), failed={secret.video_id: "gone"})
    told = "of their 2 questions 0 count as wrong, the answers of 2 are withheld"
    assert len(secret.questions) == 2 and told in write(out, "--strips", "0").text
    (small / "result.json").unlink()
    assert "1 video missing or unreadable, not counted in any number" in write(small, "--strips", "0").text


def test_withheld_answers_alone_have_no_score(motion, tmp_path):
    withheld = [v for v in motion if all(q.answer is None for q in v.questions)]
    assert withheld
    ask(tmp_path, withheld, MOTIONBENCH, LETTER, in_turn("A", "?"))
    page = write(tmp_path, "--strips", "0")
    assert "No question asked has a public answer, so there is no score." in page.text
    assert (
        set(page.outcomes().values()) == {"withheld"} and "is right, A" not in page.source.split("<script")[0]
    )


def test_captions_and_other_benchmarks_have_a_page(tmp_path):
    captions = asking.Benchmark("FAVOR-Bench captions", {"caption": "Caption"}, {})
    asked = (Question("v", "caption", "Describe.", (), None, "Describe."),)
    how = asking.Protocol("caption", lambda q: q.raw, lambda *_: (False, None), 512)
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], captions, how, lambda q: "A dog.", save=False)
    page = write(tmp_path, "--strips", "0")
    assert page.questions["v"][8] == "A dog." and "Not judged" in page.text
    assert "No question with options is answered yet." in page.text


def test_nothing_of_a_file_becomes_markup(tmp_path):
    task = "MR" + HOSTILE
    asked = (Question(HOSTILE, task, HOSTILE * 200, (HOSTILE, "b"), "A", HOSTILE),)
    videos = [BenchmarkVideo("v" + HOSTILE, Path("no" + HOSTILE.replace("\0", "")), asked)]
    videos.append(BenchmarkVideo("w" + HOSTILE, None, ()))
    how = asking.Protocol(HOSTILE, lambda q: q.raw, lambda *_: (True, "A"), 16)
    other = asking.Benchmark(HOSTILE, {task: task}, {})
    failed = {"w" + HOSTILE: HOSTILE}
    ask(tmp_path, videos, other, how, lambda q: HOSTILE * 200 + "\ud800", failed=failed, save=False)
    page = write(tmp_path)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert "onerror" not in {name for name, _ in page.attributes}
    shown = plain(HOSTILE).replace("\\x00", "\\u0000")
    row = page.questions[shown]
    assert row[4].startswith(shown) and row[4].endswith("more characters)")
    assert row[5][0] == shown and not re.search("[\0\u2028]", page.source)
    assert len(row[4]) < 4000 and len(row[8]) < 4000
    assert page.text.count("</script><script>window.hacked = 1</script>") > 3  # shown, as text


def test_names_that_turn_the_line_around_are_shown_escaped(tmp_path):
    turned = "a\u202egnp.exe\\\u2066\x1b[2K\\u202e b\nc"
    asked = (Question(turned, "MR", turned, (turned, "b"), "A", turned),)
    ask(tmp_path, [BenchmarkVideo(turned, Path("no"), asked)], MOTIONBENCH, LETTER, lambda q: "A", save=False)
    page = write(tmp_path)
    shown = "a\\u202egnp.exe\\\\u2066\\x1b[2K\\u202e b\nc"
    assert shown.replace("\n", " ") in page.text
    assert list(page.questions) == [shown.replace("\\x1b", "\\u001b")]
    assert not re.search("[\u202e\u2066\x1b]", page.source)


def test_a_pipe_in_place_of_a_video_or_of_answers_is_named(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    asked = (Question("q", "MR", "What?", ("a", "b"), "A", "What?"),)
    videos = [BenchmarkVideo("v", tmp_path / "v.mp4", asked)]
    ask(tmp_path, videos, MOTIONBENCH, LETTER, lambda q: "A", save=False)
    assert "1 video cannot be read now: v." in write(tmp_path).text
    os.mkfifo(tmp_path / "answers" / "1.jsonl")
    with pytest.raises(SystemExit, match=r"error: .*answers/1\.jsonl is no file; remove it"):
        report.main([str(tmp_path)])


def test_the_page_needs_nothing_else(small):
    page = write(small)
    links = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert links == ["data:,", "#score", "#choices", "#time", "#questions", "#run"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|fetch\(|innerHTML", page.source)
    policy = dict(page.attributes)["content"]
    policies = [value for name, value in page.attributes if value and value.startswith("default-src")]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ], policy


def test_the_script_is_in_the_wheel():
    root = Path(moss_vllm.__file__).parent
    patterns = re.search(r"^moss_vllm = \[(.*)\]$", (root.parent / "pyproject.toml").read_text(), re.M)[1]
    for name in ("page/page.css", "page/run.js", "page/answers.js"):
        assert (root / name).is_file()
        assert any(fnmatch(name, pattern) for pattern in re.findall(r'"(.*?)"', patterns)), name


def test_strips_are_frames_of_the_videos_at_their_times(small, motion):
    page = write(small)
    paths = {video.video_id: video.path for video in motion[:12]}
    assert len(page.data["strips"]) == 11 and "Frames are shown of 11 of 11 videos" in page.text
    for place, strip in page.data["strips"].items():
        clip = read_clip(
            paths[page.data["videos"][int(place)]], sample_fps=2.0, short_side_px=112, max_frames=8
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


def test_the_one_frame_control_says_so(motion, tmp_path):
    ask(tmp_path, motion[:2], MOTIONBENCH, LETTER.adapt({"still": True}), in_turn("A"))
    page = write(tmp_path)
    assert "The model was shown one frame only, the middle one; these are the video's own." in page.text


def test_a_whole_favor_bench_stays_small(tmp_path):
    words = "the person walks left then turns quickly while the camera moves up and a dog jumps".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 14)) for _ in range(500)]
    tasks = list(FAVOR_BENCH.tasks)
    asked = [
        Question(
            f"video_{n // 5:05d}_{n}", tasks[n % 6], texts[n % 500], tuple(texts[n % 490 :][:5]), None, "?"
        )
        for n in range(8184)
    ]
    asked = [Question(q.uid, q.task, q.text, q.options, q.options[n % 5], "?") for n, q in enumerate(asked)]
    videos = [
        BenchmarkVideo(f"video_{n:05d}", Path(f"{n}.mp4"), tuple(asked[5 * n : 5 * n + 5]))
        for n in range(1637)
    ]
    ask(tmp_path, videos, FAVOR_BENCH, OFFICIAL, lambda q: q.options[2], save=False)
    page = write(tmp_path, "--strips", "0")
    assert (tmp_path / "page.html").stat().st_size < 15_000_000
    assert len(page.questions) == 8184 and page.row("questions")[0] == "8,184"
    assert page.source.count("<article") == 0  # made when looked at
    assert strips.MOST_BYTES + (tmp_path / "page.html").stat().st_size < 20_000_000


def refusal(*arguments):
    with pytest.raises(SystemExit) as error:
        report.main(list(map(str, arguments)))
    return str(error.value)


def test_what_cannot_be_shown_is_refused(small, tmp_path, motion):
    assert refusal(small / "answers") == (
        f"error: {small}/answers is a part of an evaluation; give its folder, {small}"
    )
    assert refusal(small, "--strips", -1) == "error: --strips -1 is negative; 0 makes a page without frames"
    assert refusal(small, "--out", small).startswith(f"error: --out {small} is a folder; name a file in it")
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert refusal(run, "--strips", 3) == (
        f"error: --strips is for the answers of an evaluation; {run} holds a training run"
    )
    empty = tmp_path / "empty" / "answers"
    empty.mkdir(parents=True)
    (empty / "00-of-01.jsonl").write_text('{"header"')
    assert refusal(empty.parent) == (
        f"error: {empty} holds no whole line yet; wait for the evaluation to write one"
    )
    other = small / "answers" / "01-of-02.jsonl"
    other.write_text("{}\n")
    assert f"{other}: line 1 is no line of an answer store" in refusal(small)
    file = small / "answers" / "00-of-01.jsonl"
    other.unlink()
    file.write_text(file.read_text().replace('"options"', '"choices"'))
    assert "holds an answer that lacks 'options'" in refusal(small)


def test_the_name_of_the_answers_folder_is_the_evaluations():
    assert run_files.ANSWERS == asking.STORE


@pytest.mark.slow
def test_a_real_evaluation_has_a_whole_page(tiny_base, world, tmp_path):
    file = Path(__file__).parents[2] / "eval" / "motionbench.py"
    spec = importlib.util.spec_from_file_location("eval_motionbench", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    data, out = shutil.copytree(world, tmp_path / "world") / "MotionBench", tmp_path / "out"
    video = read_motionbench(data, data)[3]
    video.path.write_bytes(b"broken")
    given = ["--data", data, "--ckpt", tiny_base, "--out", out, "--allow-missing", "--short-side-px", 56]
    script.main(list(map(str, given)))
    told, page = json.loads((out / "result.json").read_text()), write(out)
    assert page.row(told["checkpoint"])[0] == f"{told['accuracy_percent']['all']:.1f}"
    assert page.row("questions")[0] == str(told["counts"]["total"]["all"]) == str(told["questions"])
    assert page.outcomes()[video.video_id] == "failed" and "these data are the motion world" in page.text
    kept = read_answers(out / "answers")
    assert len(page.data["strips"]) == len(kept.videos) and set(kept.answers) < set(page.questions)
    assert all("frames" in strip for strip in page.data["strips"].values())


def browse(page, tmp_path, script, *flags):
    """What a browser's page holds after `script`, which gives it as `seen`; no line in the console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    probe = f"""<script>(async () => {{ {script}
      const probe = Object.assign(document.createElement("pre"), {{ id: "probe" }});
      probe.textContent = JSON.stringify(seen);
      document.body.append(probe); }})();</script>"""
    file = tmp_path / "probed.html"
    file.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", *flags]
    command += ["--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1]))


BROWSING = """
const cards = () => [...document.querySelectorAll("#list article")];
const press = (key, only) => document.querySelector(`[data-key="${key}"] [data-only="${only}"]`).click();
const told = () => document.querySelector(".pager span").textContent;
const counts = key => Object.fromEntries([...document.querySelectorAll(`[data-key="${key}"] button`)]
  .map(one => [one.dataset.only, Number(one.querySelector("span").textContent)]));
const marks = () => [...new Set(cards().map(one => one.querySelector(".mark").textContent))];
const seen = { first: told(), cards: cards().length, outcomes: counts("outcome"), tasks: counts("task") };
while ([...document.images].some(one => !one.complete)) await new Promise(done => setTimeout(done, 50));
seen.strips = document.querySelectorAll(".strip").length;
seen.sizes = [...document.querySelectorAll(".strip img")]
  .map(one => one.naturalWidth + "x" + one.naturalHeight);
seen.times = [...cards()[0].querySelectorAll("figcaption")].map(one => one.textContent);
document.querySelector("[data-by='1']").click();
seen.second = told();
press("outcome", "wrong");
seen.wrong = told();
seen.wrongMarks = marks();
seen.chosen = cards().every(one => one.querySelector("li.chosen") && !one.querySelector("li.chosen.key"));
press("task", "MR");
seen.wrongMR = told();
seen.ofMR = counts("outcome");
press("outcome", "failed");
seen.none = told();
press("task", "");
seen.failed = cards().map(one => one.textContent);
press("outcome", "right");
seen.rightMarks = marks();
seen.rightKeys = cards().every(one => one.querySelector("li.chosen.key.right"));
press("outcome", "");
const box = document.getElementById("search");
box.value = " " + SEARCHED.toUpperCase() + " ";
box.dispatchEvent(new Event("input"));
await new Promise(done => setTimeout(done, 400));
seen.search = cards().map(one => one.querySelector(".soft").textContent);
seen.gone = document.querySelectorAll(".gone").length;
seen.wide = document.documentElement.scrollWidth - innerWidth;
seen.paper = getComputedStyle(document.body).backgroundColor;
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_filters_searches_and_shows_frames(motion, tmp_path, dark):
    out, gone = tmp_path / "out", motion[1].video_id
    said = in_turn("A", "B", "no letter here", "C", "D")
    ask(out, motion, MOTIONBENCH, LETTER, said, failed={gone: "its header is lost"})
    page = write(out)
    outcomes, kept = page.outcomes(), read_answers(out / "answers").answers
    searched = next(iter(kept))
    script = f"const SEARCHED = {json.dumps(searched)};\n" + BROWSING
    seen = browse(out / "page.html", tmp_path, script, *(["--force-dark-mode"] if dark else []))
    total = len(page.questions)
    count = {one: list(outcomes.values()).count(one) for one in set(outcomes.values())}
    assert set(count) == {"right", "wrong", "not read", "failed", "withheld"}
    assert seen["first"] == f"1 to 20 of {total}" and seen["second"] == f"21 to {min(40, total)} of {total}"
    assert seen["cards"] == 20 and seen["outcomes"] == {"": total, **count}
    assert seen["tasks"].pop("") == total
    assert seen["tasks"] == {
        task: sum(record["task"] == task for record in kept.values()) for task in seen["tasks"]
    }
    strip = page.data["strips"][str(page.data["questions"][0][1])]
    assert seen["times"] == [f"{time:.1f} s" for time in strip["times"]]
    assert seen["strips"] == 20 and set(seen["sizes"]) == {f"{strip['size'][0]}x{strip['size'][1]}"}
    assert seen["wrong"] == f"1 to {min(20, count['wrong'])} of {count['wrong']}" and seen["chosen"]
    assert seen["wrongMarks"] == ["✗ wrong"] and seen["rightMarks"] == ["✓ right"] and seen["rightKeys"]
    of_mr = [outcomes[uid] for uid, record in kept.items() if record["task"] == "MR"]
    assert seen["wrongMR"].endswith(f"of {of_mr.count('wrong')}")
    assert seen["ofMR"] == {"": len(of_mr), **{one: of_mr.count(one) for one in count}}
    assert seen["none"] == "no question fits"
    assert [gone in text and "its header is lost" in text for text in seen["failed"]] == [True]
    assert seen["search"] == [f"question {searched}"] and seen["gone"] == 0 and seen["wide"] <= 0
    assert seen["paper"] == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


@pytest.mark.slow
def test_a_browser_runs_nothing_of_the_answers(tmp_path):
    asked = tuple(Question(f"{n}{HOSTILE}", "MR", HOSTILE, (HOSTILE, "b"), "A", HOSTILE) for n in range(3))
    videos = [BenchmarkVideo(HOSTILE, Path("gone.mp4"), asked), BenchmarkVideo("w", None, ())]
    how = asking.Protocol("letter", lambda q: q.raw, lambda *_: (True, "A"), 16)
    said = in_turn(HOSTILE, "x" * 100_000)
    ask(tmp_path / "out", videos, MOTIONBENCH, how, said, failed={"w": HOSTILE}, save=False)
    write(tmp_path / "out")
    script = """
    const seen = { hacked: typeof window.hacked, cards: document.querySelectorAll("article").length,
      images: document.images.length, gone: document.querySelectorAll(".gone").length,
      text: document.querySelector("article .text").textContent,
      wide: document.documentElement.scrollWidth - innerWidth };"""
    seen = browse(tmp_path / "out" / "page.html", tmp_path, script)
    assert seen["hacked"] == "undefined" and seen["cards"] == 4 and seen["images"] == 0
    assert seen["gone"] == 4 and seen["text"] == HOSTILE and seen["wide"] <= 0
