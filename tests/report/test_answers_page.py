"""Owns: an evaluation's page has the numbers of its result.json and every answer, escaped."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from answer_folders import LETTER, OFFICIAL, ask, in_turn
from launching import load_script
from pages import browse, write

from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH, Benchmark, Protocol
from moss_vllm.evaluation.result import QUESTION_SCHEMA
from moss_vllm.report import strips
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.runtime.screen import plain

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror='hacked = 1'>&amp;\0<!--\u2028"""


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
        elif name == "option_text":
            said = in_turn(dict(zip("ABCDEF", (2.5, 0.5, 3.0, 1.0, 1.5, 2.0), strict=True)))
        ask(out, videos, benchmark, protocol, said, failed=failed)
        told, page = json.loads((out / "result.json").read_text()), write(out, "--strips", "0")
        tasks = page.row("%")
        some = [task for task, number in told["counts"]["total"].items() if number]
        assert set(tasks) == set(some) and tasks[0] == "all"
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


def test_the_papers_rows_stand_beside_with_a_note_where_the_data_differ(motion, tmp_path):
    small = tmp_path / "small"
    elsewhere = [replace(video, path=tmp_path / video.path.name) for video in motion[:12]]
    ask(small, elsewhere, MOTIONBENCH, LETTER, in_turn("A", "B", "(C) it moves", "hm"))
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


@pytest.mark.parametrize("save", [True, False])
def test_the_papers_rows_are_not_beside_the_motion_world(motion, tmp_path, save):
    """Also where an evaluation has not come to its end, or an earlier version did not say so."""
    ask(tmp_path, motion[:12], MOTIONBENCH, LETTER, in_turn("A", "B"), save=save)
    page = write(tmp_path, "--strips", "0")
    assert page.row("base") and "(paper)" not in page.text and "published benchmark" not in page.text


def test_every_answer_is_there_as_it_was_said(motion, tmp_path):
    scores = {"A": -1.25, "B": -0.5, "C": float("nan")}
    ask(tmp_path, motion[:6], MOTIONBENCH, MOTIONBENCH.protocols["likelihood"], lambda q: scores)
    page = write(tmp_path, "--strips", "0")
    kept = read_answers(tmp_path / "answers", QUESTION_SCHEMA).answers
    assert set(page.questions) == set(kept)
    for uid, record in kept.items():
        _, video, task, _, text, options, right, chosen, output, told = page.questions[uid]
        assert page.data["videos"][video] == record["video_id"] and text == record["question"]
        assert page.data["tasks"][task][0] == record["task"] and options == record["options"]
        assert (
            "ABCDEF".index(record["answer"]) == right and output == record["output"] == "B" and chosen == [1]
        )
        assert told == {"A": "-1.25", "B": "-0.50", "C": "nan"}


@pytest.mark.parametrize("benchmark", [MOTIONBENCH, FAVOR_BENCH], ids=lambda one: one.name)
def test_the_losses_of_texts_stand_beside_the_options(benchmark, motion, favor, tmp_path):
    """The chosen option has the lowest one; right is what the answer says, a letter or a text."""
    videos, losses = (motion if benchmark is MOTIONBENCH else favor)[:6], (1.25, 0.5, 2.0, 3.0, 4.0, 5.0)
    protocol = benchmark.protocols["option_text"]
    ask(
        tmp_path,
        videos,
        benchmark,
        protocol,
        lambda q: dict(zip("ABCDEF"[: len(q.options)], losses, strict=False)),
    )
    page = write(tmp_path, "--strips", "0")
    assert page.data["score"] == "mean loss" and page.data["letters"] == (benchmark is MOTIONBENCH)
    kept = read_answers(tmp_path / "answers", QUESTION_SCHEMA).answers
    for uid, record in kept.items():
        _, _, _, _, _, options, right, chosen, output, told = page.questions[uid]
        assert (
            chosen == [1]
            and output == options[1]
            and list(record["mean_loss"].values()) == list(losses)[: len(options)]
        )
        assert told == {letter: f"{loss:.2f}" for letter, loss in record["mean_loss"].items()}
        assert record["correct"] in (None, right == 1)


def test_time_and_sizes_are_those_of_the_videos(small):
    page = write(small, "--strips", "0")
    assert page.row("decode") == ["5.5", "25.0", "0.500", "0.500"]  # of eleven videos
    assert page.row("encode") == ["11.0", "50.0", "1.000", "1.000"]
    assert page.row("frames of a video") == ["8", "8", "8", "88"]
    assert page.row("tokens its questions share") == ["200", "200", "200", "2,200"]


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
    captions = Benchmark("FAVOR-Bench captions", {"caption": "Caption"}, {})
    asked = (Question("v", "caption", "Describe.", (), None, "Describe."),)
    how = Protocol("caption", lambda q: q.raw, lambda *_: (False, None), 512)
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], captions, how, lambda q: "A dog.", save=False)
    page = write(tmp_path, "--strips", "0")
    assert page.questions["v"][8] == "A dog." and "Not judged" in page.text
    assert "No question with options is answered yet." in page.text


def test_nothing_of_a_file_becomes_markup(tmp_path):
    task = "MR" + HOSTILE
    asked = (Question(HOSTILE, task, HOSTILE * 200, (HOSTILE, "b"), "A", HOSTILE),)
    videos = [BenchmarkVideo("v" + HOSTILE, Path("no" + HOSTILE.replace("\0", "")), asked)]
    videos.append(BenchmarkVideo("w" + HOSTILE, None, ()))
    how = Protocol(HOSTILE, lambda q: q.raw, lambda *_: (True, "A"), 16)
    other = Benchmark(HOSTILE, {task: task}, {})
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


@pytest.mark.slow
def test_a_real_evaluation_has_a_whole_page(tiny_base, world, tmp_path):
    script = load_script("eval/motionbench.py")
    data, out = shutil.copytree(world, tmp_path / "world") / "MotionBench", tmp_path / "out"
    video = read_motionbench(data, data)[3]
    video.path.write_bytes(b"broken")
    given = ["--data", data, "--ckpt", tiny_base, "--out", out, "--allow-missing", "--short-side-px", 56]
    script.main(list(map(str, given)))
    told, page = json.loads((out / "result.json").read_text()), write(out)
    assert page.row(told["checkpoint"])[0] == f"{told['accuracy_percent']['all']:.1f}"
    assert page.row("questions")[0] == str(told["counts"]["total"]["all"]) == str(told["questions"])
    assert page.outcomes()[video.video_id] == "failed" and "these data are the motion world" in page.text
    kept = read_answers(out / "answers", QUESTION_SCHEMA)
    assert len(page.data["strips"]) == len(kept.videos) and set(kept.answers) < set(page.questions)
    assert all("frames" in strip for strip in page.data["strips"].values())


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
    outcomes, kept = page.outcomes(), read_answers(out / "answers", QUESTION_SCHEMA).answers
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
    how = Protocol("letter", lambda q: q.raw, lambda *_: (True, "A"), 16)
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
    shown = plain(HOSTILE).replace("\\x00", "\\u0000")  # as JSON writes it
    assert seen["gone"] == 4 and seen["text"] == shown and seen["wide"] <= 0
