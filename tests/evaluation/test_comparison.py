"""Owns: a difference between two evaluations is that of the same questions, with the uncertainty it has.

Also: what cannot be compared is counted and named or refused, and eval/compare.py shows and writes all of it.
"""

import json
from dataclasses import replace
from math import comb, erfc, sqrt
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, load_script

from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.evaluation.asking import evaluate
from moss_vllm.evaluation.comparison import (
    bootstrap_interval,
    compare,
    mcnemar,
    measure_difference,
)
from moss_vllm.evaluation.protocols import MOTIONBENCH
from moss_vllm.evaluation.questions import look_over
from moss_vllm.evaluation.result import read_evaluation
from moss_vllm.runtime.line_store import AnswerFile, Shard

PROTOCOL = {"name": "letter", "max_new_tokens": 16, "sample_fps": 2.0, "short_side_px": 224, "still": False}
# Right or not in three runs; videos v0 to v2 with 3, 2 and 1 questions. None: the answer is withheld.
RIGHT = {
    "v0": {"q0": (0, 1, 1), "q1": (1, 1, 0), "q2": (0, 1, 1)},
    "v1": {"q3": (1, 0, 0), "q4": (1, 1, 1)},
    "v2": {"q5": (0, 1, 0)},
}
TASKS = {"q0": "RC", "q1": "MR", "q2": "MR", "q3": "MR", "q4": "RC", "q5": "MR"}


def write(folder, run, *, drop=(), processes=1, withheld=(), failed=(), question="What moves?", **header):
    """A result folder of run 0, 1 or 2 of RIGHT, without the questions in `drop`."""
    header = {
        "benchmark": "MotionBench-Dev",
        "checkpoint": f"model {run}",
        "weights": f"digest {run}",
        "protocol": PROTOCOL,
        "questions": 6,
        "data": "d0",
        "versions": {"torch": "2.12"},
        **header,
    }
    for rank in range(processes):
        with AnswerFile(folder / "answers", header, Shard(rank, processes)) as file:
            for video_id, questions in list(RIGHT.items())[rank::processes]:
                if video_id in failed:
                    file.add({"video_id": video_id, "failed": "empty", "answers": []})
                    continue
                rows = [
                    {
                        "uid": uid,
                        "task": TASKS[uid],
                        "question": question,
                        "options": ["left", "right"],
                        "prompt": "asked",
                        "output": f"it says {'B' if rights[run] else 'A'}",
                        "parsed": "B" if rights[run] else "A",
                        "answer": None if uid in withheld else "B",
                        "correct": None if uid in withheld else bool(rights[run]),
                    }
                    for uid, rights in questions.items()
                    if uid not in drop
                ]
                file.add({"video_id": video_id, "path": f"{video_id}.mp4", "answers": rows})
    return folder


@pytest.fixture
def two(tmp_path):
    """Compare runs 0 and 1 of RIGHT, each written with the options given."""

    def make(first=None, second=None):
        a = read_evaluation(write(tmp_path / "a", 0, **(first or {})), "old")
        b = read_evaluation(write(tmp_path / "b", 1, **(second or {})), "new")
        return compare(a, b)

    return make


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "eval" / "compare.py")


@pytest.mark.parametrize(
    "gained, lost, expected",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (3, 1, 2 * (1 + 4) / 16),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 2, 1.0),
        (10, 10, 1.0),
        (121, 59, 2 * sum(comb(180, i) for i in range(60)) / 2**180),
    ],
)
def test_mcnemar_by_hand(gained, lost, expected):
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_of_many_pairs():
    """Close to its normal limit with the continuity correction; beyond a double's range it is 0."""
    z = (4184 - 4000 - 1) / 8184**0.5
    assert mcnemar(4000, 4184) == pytest.approx(erfc(z / sqrt(2)), rel=1e-3)
    assert mcnemar(8184, 0) == 0.0


def test_differences_by_hand(two):
    found = two()
    assert list(found.tasks) == ["all", "MR", "RC"]  # tasks in the order of Table 5, without those not asked
    whole, motion, count = found.tasks.values()
    assert (whole.questions, whole.videos, whole.gained, whole.lost) == (6, 3, 3, 1)
    assert whole.accuracy == pytest.approx((50, 500 / 6)) and whole.points == pytest.approx(200 / 6)
    assert whole.p == 2 * (1 + 4) / 16
    assert (motion.questions, motion.videos, motion.gained, motion.lost, motion.points) == (4, 3, 2, 1, 25)
    assert motion.accuracy == (50, 75) and motion.p == 1.0
    assert (count.questions, count.videos, count.gained, count.lost, count.points) == (2, 2, 1, 0, 50)
    assert count.accuracy == (50, 100) and count.p == 1.0
    assert [(row["uid"], row["change"]) for row in found.changed] == [
        ("q0", "gained"),
        ("q2", "gained"),
        ("q3", "lost"),
        ("q5", "gained"),
    ]
    assert found.changed[2] == {
        "change": "lost",
        "uid": "q3",
        "video_id": "v1",
        "task": "MR",
        "question": "What moves?",
        "options": ["left", "right"],
        "answer": "B",
        "output": {"old": "it says B", "new": "it says A"},
        "parsed": {"old": "B", "new": "A"},
    }
    assert found.left_out == {} and found.warnings == []


def test_two_videos_give_the_interval_by_hand():
    """Of two videos a draw has the first twice, both, or the second twice: 1/4, 1/2, 1/4."""
    changes, videos = np.array([1, 1, 0, -1]), np.array(["x", "x", "x", "y"])
    assert bootstrap_interval(changes, videos) == pytest.approx((-100, 200 / 3))
    assert bootstrap_interval(changes, np.array(["x"] * 4)) is None


def test_interval_is_that_of_drawing_videos_one_by_one():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 200)
    videos = np.repeat(np.arange(200), sizes)
    changes = rng.choice([-1, 0, 0, 0, 1, 1], len(videos))
    sums = np.array([changes[videos == video].sum() for video in range(200)])
    drawn = rng.integers(200, size=(20_000, 200))
    expected = np.percentile(100 * sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))
    found = bootstrap_interval(changes, videos, draws=20_000)
    assert found == pytest.approx(expected, abs=0.25) and expected[1] - expected[0] > 8
    assert found == bootstrap_interval(changes, videos, draws=20_000)  # a fixed seed
    shuffled = rng.permutation(len(videos))
    assert found == bootstrap_interval(changes[shuffled], videos[shuffled], draws=20_000)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Questions of one video lean the same way: drawn alone, their interval is too narrow."""
    sizes, truth = np.tile(np.arange(1, 9), 20), 5.0
    videos = np.repeat(np.arange(len(sizes)), sizes)
    covered = np.zeros(2)
    for trial in range(300):
        rng = np.random.default_rng(trial)
        lean = rng.choice([0.35, -0.25], len(sizes))[videos]  # mean 0.05
        chance = rng.random(len(videos))
        changes = (chance < 0.4 + lean / 2).astype(int) - (chance > 0.6 + lean / 2)
        for kind, units in enumerate((videos, np.arange(len(videos)))):
            low, high = bootstrap_interval(changes, units, draws=500)
            covered[kind] += low <= truth <= high
    by_video, by_question = covered / 300
    assert 0.92 <= by_video <= 0.98 and by_question < 0.9


def test_the_same_answers_differ_by_nothing(tmp_path):
    runs = [read_evaluation(write(tmp_path / name, 1), name) for name in "ab"]
    found = compare(*runs)
    for difference in found.tasks.values():
        assert difference.points == 0 and difference.p == 1 and difference.interval == (0, 0)
        assert difference.gained == difference.lost == 0
    assert found.changed == [] and found.warnings == ["the weights and the protocol are the same (digest 1)"]


def test_two_evaluations_of_one_checkpoint_are_known_to_be_that(reopen, world, tmp_path):
    videos = read_motionbench(world / "MotionBench", world / "MotionBench")[:2]
    protocol = replace(MOTIONBENCH.protocols["likelihood"], short_side_px=56, max_frames=2)
    questions = look_over(MOTIONBENCH, videos, protocol.prompt)
    for name in "ab":
        evaluate(reopen(), questions, protocol, out=tmp_path / name)
    found = compare(*(read_evaluation(tmp_path / name, name) for name in "ab"))
    (told,) = found.warnings
    assert told.startswith("the weights and the protocol are the same (") and found.tasks["all"].points == 0


def test_the_other_order_turns_every_sign():
    rng = np.random.default_rng(1)
    for _ in range(5):
        videos = rng.integers(0, 60, 200)
        right = rng.integers(0, 2, (200, 2))
        one, other = measure_difference(right, videos), measure_difference(right[:, ::-1], videos)
        assert one.points == -other.points != 0 and one.accuracy == other.accuracy[::-1]
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
        assert (one.gained, one.lost, one.p) == (other.lost, other.gained, other.p)


def test_shards_do_not_matter(tmp_path):
    old = read_evaluation(write(tmp_path / "a", 0), "old")
    one = compare(old, read_evaluation(write(tmp_path / "b", 1), "new"))
    three = compare(old, read_evaluation(write(tmp_path / "c", 1, processes=3), "new"))
    assert one.tasks == three.tasks and one.changed == three.changed


def test_what_is_answered_once_is_left_out_and_named(two):
    found = two({"drop": ("q5",)}, {"drop": ("q0", "q1")})
    assert found.left_out == {"answered in old only": ["q0", "q1"], "answered in new only": ["q5"]}
    assert (found.tasks["all"].questions, found.tasks["all"].gained, found.tasks["all"].lost) == (3, 1, 1)
    assert "left out: 2 questions answered in old only (q0, q1)" in found.notes
    assert "left out: 1 question answered in new only (q5)" in found.notes
    assert "old is partial: 5 of 6 questions have an answer" in found.warnings
    assert "new is partial: 4 of 6 questions have an answer" in found.warnings


def test_withheld_answers_are_left_out(two):
    withheld = [f"q{i}" for i in range(5)]
    found = two({"withheld": withheld}, {"withheld": withheld})
    assert found.left_out == {"whose answer is withheld": withheld}
    assert "left out: 5 questions whose answer is withheld (q0, q1, q2, q3, q4)" in found.notes
    assert found.tasks["all"].questions == 1 and found.tasks["all"].interval is None


def test_more_than_five_names_are_shortened(tmp_path):
    old = write(tmp_path / "a", 0)
    first, second, *_ = map(json.loads, (old / "answers" / "00-of-01.jsonl").open())
    with AnswerFile(old / "answers", first["header"], Shard()) as file:
        file.add({"video_id": "v9", "answers": [{**second["answers"][0], "uid": f"x{i}"} for i in range(7)]})
    found = compare(read_evaluation(old, "old"), read_evaluation(write(tmp_path / "b", 1), "new"))
    assert "left out: 7 questions answered in old only (x0, x1, x2, x3, x4, ...)" in found.notes
    assert len(found.left_out["answered in old only"]) == 7


def test_failed_videos_are_told(two):
    found = two(second={"failed": ("v1",)})
    assert found.tasks["all"].questions == 4 and found.left_out == {"answered in old only": ["q3", "q4"]}
    told = "new has 1 videos missing or unreadable (v1): their questions are not compared"
    assert found.warnings == [told, "new is partial: 4 of 6 questions have an answer"]


def test_other_protocols_versions_and_data_are_told(two):
    other = {**PROTOCOL, "name": "likelihood", "max_new_tokens": None, "still": True}
    was, now = ({"torch": torch, "av": av} for torch, av in (("2.12", "17.1.0"), ("2.11", "18.1.0")))
    second = {"protocol": other, "data": "d1", "versions": {"torch": "2.11"}, "environment": now}
    found = two({"environment": was}, second)
    assert found.warnings == [
        "the protocols differ: name letter and likelihood, max_new_tokens 16 and None, still False and True",
        "the versions differ: torch 2.12 and 2.11",
        "the environments differ: av 17.1.0 and 18.1.0",
        "the digests of the data differ, as they do where protocols have other prompts: d0 and d1",
    ]
    assert found.about[0].startswith("old: checkpoint model 0 in ")
    assert "protocol likelihood (option likelihood, nothing is generated): 2 fps" in found.about[1]
    assert found.about[1].endswith("one-frame control: every frame is the middle one")


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({"drop": ("q5",)}, {"drop": ["q0", "q1", "q2", "q3", "q4"]},
         "share no question .*; 5 questions .* old only; 1 question .* new only"),
        ({}, {"question": "What stands?"},
         "6 questions whose video_id, task, question, options, answer are not"),
        ({}, {"benchmark": "FAVOR-Bench"},
         "a is of MotionBench-Dev, .*b of FAVOR-Bench; compare runs of one"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(two, first, second, message):
    with pytest.raises(ValueError, match=message):
        two(first, second)


def test_other_data_under_one_protocol_are_told(two):
    assert two(second={"data": "d1"}).warnings == ["the digests of the data differ: d0 and d1"]


def test_folders_without_answers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none holds no answers; name what was --out of eval/motionbench.py"):
        read_evaluation(tmp_path / "none", "none")
    folder = write(tmp_path / "a", 0)
    file = folder / "answers" / "00-of-01.jsonl"
    file.write_text(file.read_text().replace('"correct"', '"judged"'))
    with pytest.raises(
        ValueError, match="line 2 is no line of an answer store .it has no 'correct'.; remove"
    ):
        read_evaluation(folder, "a")
    file.write_text(file.read_text().replace('"judged"', '"correct"').replace('"question"', '"asked"'))
    with pytest.raises(ValueError, match="answers lacks question; evaluate again with this version"):
        read_evaluation(folder, "a")
    file.write_text('{"header"')
    with pytest.raises(ValueError, match="answers holds no whole line yet; wait for the evaluation"):
        read_evaluation(folder, "a")


def test_script_compares_every_pair(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    folders = [str(write(tmp_path / name, run)) for run, name in enumerate(("base", "tuned", "moss"))]
    out = tmp_path / "new" / "c.json"
    found = script.main([*folders, "--json", str(out), "--changed", "1"])
    assert [one.names for one in found] == [("base", "tuned"), ("base", "moss"), ("tuned", "moss")]
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "MotionBench-Dev: tuned against base, 6 questions about 3 videos" in lines
    assert "all 6 50.0 83.3 +33.3 -50.0 to +100.0 3 1 0.625" in lines
    assert "all 6 83.3 50.0 -33.3 -100.0 to +0.0 0 2 0.500" in lines
    assert "gained: 3, the first 1 of them" in lines and "lost: 1" in lines
    assert "RC q0, video v0: What moves?" in lines and "MR q2, video v0: What moves?" not in lines[:30]
    assert lines.count("right: B. right") == 2 + 2 + 1
    assert "base: it says A" in lines and "tuned: it says B" in lines
    told = json.loads(out.read_text())
    assert told["bootstrap"] == {
        "draws": 10_000,
        "seed": 0,
        "resampled": "videos",
        "percentiles": [2.5, 97.5],
    }
    assert told["evaluations"]["moss"]["checkpoint"] == "model 2"
    assert [row["uid"] for row in told["comparisons"][0]["changed"]] == ["q0", "q2", "q3", "q5"]
    assert told["comparisons"][2]["tasks"]["all"]["points"] == pytest.approx(-200 / 6)
    assert told["comparisons"][2]["notes"] == found[2].notes


@pytest.mark.parametrize(
    "names", [("short", "names"), ("favor_lora-step-000360-letter", "A rather long name")]
)
def test_a_table_of_80_columns_cuts_and_folds_nothing(script, tmp_path, capsys, monkeypatch, names):
    monkeypatch.setenv("COLUMNS", "80")
    script.main([str(write(tmp_path / str(run), run)) for run in range(2)] + ["--names", *names])
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    heads = names if names[0] == "short" else ("A", "B")
    assert f"task questions {heads[0]} {heads[1]} difference 95 % interval gained lost p" in lines
    assert "all 6 50.0 83.3 +33.3 -50.0 to +100.0 3 1 0.625" in lines and "…" not in said
    assert all(
        (f"{a}: {name}" in lines) == (a == head) for a, name, head in zip("AB", names, heads, strict=True)
    )


def test_script_prints_markdown(script, tmp_path, capsys):
    folders = [str(write(tmp_path / name, run, drop=("q5",) * run)) for run, name in enumerate("ab")]
    script.main([*folders, "--names", "old", "x|y", "--markdown", "--changed", "1"])
    lines = capsys.readouterr().out.splitlines()
    heads = "| task | questions | old | x\\|y | difference | 95 % interval | gained | lost | p |"
    assert lines[:4] == [
        "**MotionBench-Dev: x\\|y against old, 5 questions about 2 videos**",
        "",
        heads,
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    assert lines[4] == "| all | 5 | 60.0 | 80.0 | +20.0 | -50.0 to +66.7 | 2 | 1 | 1.000 |"
    assert "- WARNING: x\\|y is partial: 5 of 6 questions have an answer" in lines
    assert "- left out: 1 question answered in old only (q5)" in lines
    assert "- under 30 videos in all, MR, RC: intervals there are too narrow" in lines
    start = lines.index("```text")
    assert lines[start:] == [
        "```text",
        "gained: 2, the first 1 of them",
        "  RC q0, video v0: What moves?",
        "    right: B. right",
        "    old: it says A",
        "    x|y: it says B",
        "lost: 1",
        "  MR q3, video v1: What moves?",
        "    right: B. right",
        "    old: it says B",
        "    x|y: it says A",
        "```",
    ]
    script.main([*folders, "--markdown", "--changed", "0"])
    assert "```" not in capsys.readouterr().out


def test_names_are_told_apart(script, tmp_path):
    first, second = tmp_path / "1" / "eval", tmp_path / "2" / "eval"
    assert script.choose_names([tmp_path / "a", tmp_path / "b"], None) == ["a", "b"]
    assert script.choose_names([first, second], None) == [str(first), str(second)]
    assert script.choose_names([first, first], ["x", "y"]) == ["x", "y"]


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "error: 1 folder cannot be compared; name two or more"),
        (["a"], "error: 2 folders are called a, a; give each a name of its own with --names"),
        (["b", "--names", "x"], "error: 2 folders are called x; give each a name of its own with --names"),
        (["b", "--names", "x", "x"], "error: 2 folders are called x, x; give each"),
        (["b", "--changed", "-1"], "error: --changed is -1; it must be at least 0"),
        (["c"], "error: c holds no answers; name what was --out"),
        (["b", "--json", "a"], "error: .*Is a directory"),
    ],
)
def test_script_ends_with_one_line(script, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    for run, name in enumerate("ab"):
        write(Path(name), run)
    with pytest.raises(SystemExit, match=f"^{message}"):
        script.main(["a", *more])


def test_small_numbers_have_a_sign(script):
    assert " ".join(map(script.signed, (0.04, -0.04, -0.0, 1.25, -3))) == "+0.0 +0.0 +0.0 +1.2 -3.0"
