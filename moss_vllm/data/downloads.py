"""What the hub holds of the data sets, counted as they were published, and where the others come from."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from moss_vllm.data.actions.datasets import PUBLISHED
from moss_vllm.data.favor import read_favor_bench, read_favor_train
from moss_vllm.data.motionbench import read_motionbench, read_motionbench_captions
from moss_vllm.data.rows import BadRow, BenchmarkVideo, ClipRow


class OnHub(NamedTuple):
    """A data set of the hub, or a part of one.

    Args:
        repo_id: its name there.
        folder: where it goes by default.
        patterns: its files in the repository.
        counts: what was published, by the names that `count_in` gives to what it finds in a folder.
        then: what comes from elsewhere, and what to do next.
    """

    repo_id: str
    folder: str
    patterns: tuple[str, ...]
    counts: Mapping[str, int]
    count_in: Callable[[Path], dict[str, int]]
    then: str


def _count_benchmark(videos: list[BenchmarkVideo], only: Callable[[str | None], bool]) -> dict[str, int]:
    questions = [question for video in videos for question in video.questions]
    tasks = Counter(question.task for question in questions if only(question.answer))
    here = sum(video.path is not None for video in videos)
    return {"videos": here, "questions": len(questions), **{f"of {task}": n for task, n in tasks.items()}}


def count_favor_bench(folder: Path) -> dict[str, int]:
    """Videos that are there, questions, and questions of each task."""
    return _count_benchmark(read_favor_bench(folder, folder, allow_missing=True), lambda answer: True)


def count_motionbench(folder: Path) -> dict[str, int]:
    """As `count_favor_bench`; of each type, the questions of the dev split."""
    videos = read_motionbench(folder, folder, split="all", allow_missing=True)
    return _count_benchmark(videos, lambda answer: answer is not None)


def _count_captions(read: Callable[..., list[ClipRow]]) -> Callable[[Path], dict[str, int]]:
    def count(folder: Path) -> dict[str, int]:
        bad: list[BadRow] = []
        kept = read(folder, folder, bad=bad)
        return {"videos": len(kept), "rows": len(kept) + len(bad)}

    return count


ON_HUB = {
    "favor": OnHub(
        "zl2048/FAVOR",
        "FAVOR",
        ("*.json", "videos/FAVOR-Bench/*"),
        {
            **{"videos": 1776, "questions": 8184, "of AS": 2637, "of HAC": 1541, "of SAD": 1662},
            **{"of MAD": 1205, "of CM": 1075, "of NSM": 64},
        },
        count_favor_bench,
        "eval/favor_bench.py --data FOLDER asks its questions",
    ),
    "favor_train": OnHub(
        "zl2048/FAVOR",
        "FAVOR",
        ("*.json", "videos/FAVOR-Train/*"),
        {"videos": 3114, "rows": 17152},
        _count_captions(read_favor_train),
        "the other 14,038 clips are parts of YouTube videos: scripts/prepare_favor.py --data FOLDER lists "
        "them, and cuts those that you fetch",
    ),
    "motionbench": OnHub(
        "zai-org/MotionBench",
        "MotionBench",
        ("MotionBench/*",),
        {
            **{"videos": 5385, "questions": 8052, "of MR": 1478, "of MO": 690, "of LM": 546, "of AO": 519},
            **{"of RC": 400, "of CM": 385},
        },
        count_motionbench,
        "eval/motionbench.py --data FOLDER asks the 4,018 whose answers are published",
    ),
    "motionbench_train": OnHub(
        "zai-org/MotionBench",
        "MotionBench",
        ("MotionBenchCaption-train/*",),
        {"videos": 5000, "rows": 5000},
        _count_captions(read_motionbench_captions),
        "recipes/favor_lora.py --data FOLDER trains on it",
    ),
}

ELSEWHERE = {
    "ssv1": "Qualcomm gives Something-Something out under a licence of its own: ask there, and unpack the "
    "frames and lists of V1 below one folder",
    "ssv2": "as ssv1, the videos and lists of V2",
    "diving48": "the authors' page has Diving48_rgb.tar.gz and the lists; take those of V2",
    "gym99": "the authors' page has the lists of version 1.1; the videos are on YouTube, cut to "
    "subactions/ID.mp4",
    "gym288": "as gym99",
    "k400": "the lists name YouTube videos and times; no copy is complete",
    "thumos14": "the challenge's page has the videos (200 for training, 213 for tests), OpenTAD the "
    "annotation thumos_14_anno.json",
    "kinetics_gebd": "StanLei52/GEBD on GitHub has the annotations; the videos are those of Kinetics-400",
    "tapos": "Ziwei-Zheng/EfficientGEBD on GitHub has tapos_gt_train.pkl and tapos_gt_val.pkl (12,822 and "
    "1,755 instances); the videos are on YouTube",
}
PAGES = {"thumos14": "detection", "kinetics_gebd": "boundaries", "tapos": "boundaries"}


def elsewhere(name: str) -> str:
    """Where a data set comes from that the hub does not hold, in a line."""
    page = PAGES.get(name, "action_recognition")
    clips = "; {:,} training and {:,} test clips".format(*PUBLISHED[name]) if name in PUBLISHED else ""
    return f"{ELSEWHERE[name]}{clips}; docs/{page}.md has the layout that is read"


def compare_counts(found: Mapping[str, int], published: Mapping[str, int]) -> tuple[list[str], bool]:
    """A line for each count, and whether all agree."""
    lines = []
    for name in dict.fromkeys([*published, *found]):
        counts = found.get(name, 0), published.get(name, 0)
        lines.append(f"{name}: {counts[0]:,} of {counts[1]:,}{' - differs' * (counts[0] != counts[1])}")
    return lines, dict(found) == dict(published)
