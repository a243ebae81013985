"""The tasks of `experiments/ablate.py`: whose settings a table's rows are, and where scores are found."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/ablation_tasks.py is a part of ablate.py, not a command")

from torch import nn

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.scores import TABLE_9_COLUMNS
from moss_vllm.data.world.actions import MINI_ACTIONS_ROOT, ensure_mini_actions
from moss_vllm.data.world.boundaries import BOUNDARIES_ROOT, draw_boundaries
from moss_vllm.data.world.untrimmed import UNTRIMMED_CLASSES, UNTRIMMED_ROOT, draw_untrimmed
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.scores import AVERAGE
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.recognition.scores import CLASS_MEAN, Accuracy
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.line_store import ANSWERS, read_answers

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, eq=False)
class Task:
    """What differs between the recipes whose tables are trained.

    Args:
        recipe: the script.
        settings: the name of its dataclass of settings.
        build: makes a model of the arguments that the recipe's `model_arguments` returns.
        known: what that function needs beside the settings.
        draw_groups: draws the mini data where it is not there; the group of each of its classes. Without
            classes, other scores stand for groups.
        by_group: the score of each group in the last test, from a run's folder, that test's step and groups.
        best: the score in the result.json of a run's own test, for its data set.
        prefix: of the folders of its runs.
        score, tested: how a table calls the score, and what is counted of a test.
        paper: the paper's columns by the name of a row's field; with `has_costs` its costs stand before them.
        notes: below each table.
    """

    recipe: Path
    settings: str
    build: Callable[..., nn.Module]
    known: Mapping[str, Any]
    draw_groups: Callable[[str | None], dict[str, str]]
    by_group: Callable[[Path, int, Mapping[str, str]], dict[str, float]]
    best: Callable[[Mapping[str, Any], str], float]
    prefix: str
    score: str
    tested: str
    paper: Mapping[str, str]
    has_costs: bool
    notes: tuple[str, ...]


def _draw_actions(root: str | None) -> dict[str, str]:
    with (ensure_mini_actions(root or MINI_ACTIONS_ROOT) / "groups.csv").open(newline="") as file:
        return {row["name"]: row["group"] for row in csv.DictReader(file)}


def _accuracy_by_group(folder: Path, step: int, groups: Mapping[str, str]) -> dict[str, float]:
    stored = read_answers(folder / "evals" / f"step-{step:06d}" / ANSWERS, CLIP_SCHEMA).answers.values()
    results = Accuracy([{**answer, "group": groups[answer["answer"]]} for answer in stored]).by("group")
    return {group: results[group][0] for group in dict.fromkeys(groups.values()) if group in results}


def _draw_untrimmed(root: str | None) -> dict[str, str]:
    draw_untrimmed(root or UNTRIMMED_ROOT)
    return dict(UNTRIMMED_CLASSES)


def _precision_by_group(folder: Path, step: int, groups: Mapping[str, str]) -> dict[str, float]:
    """From the run's own test; the miniature is tested once, so its last test is its best."""
    with (folder / "test" / "per_class.csv").open(newline="") as file:
        found = {row["class"]: float(row[AVERAGE]) for row in csv.DictReader(file)}
    return {
        group: fmean(found[name] for name in found if groups[name] == group)
        for group in dict.fromkeys(groups.values())
    }


def _draw_boundaries(root: str | None) -> dict[str, str]:
    draw_boundaries(root or BOUNDARIES_ROOT)
    return {TABLE_9_COLUMNS[1]: TABLE_9_COLUMNS[1]}


def _average_f1(folder: Path, step: int, groups: Mapping[str, str]) -> dict[str, float]:
    """From the run's own test; the miniature is tested once, so its last test is its best."""
    result = read_json(folder / "test" / "result.json")
    return {name: result[name] for name in groups}


RECOGNITION = Task(
    recipe=RECIPES / "action_recog.py",
    settings="ActionRecog",
    build=build_classifier,
    known={"classes": 2},
    draw_groups=_draw_actions,
    by_group=_accuracy_by_group,
    best=lambda result, data: result["class_mean" if data in CLASS_MEAN else "top1"],
    prefix="",
    score="top-1",
    tested="clips",
    paper={"ssv1": "SSV1", "d48": "D48"},
    has_costs=True,
    notes=(
        "paper: MOSS-S, costs in G, M and GB, top-1 on Something-Something V1 and Diving48",
        "last step: one view a clip; best: the checkpoint that was best on these same clips",
    ),
)
DETECTION = Task(
    recipe=RECIPES / "detection.py",
    settings="Detection",
    build=build_adatad,
    known={"classes": 2},
    draw_groups=_draw_untrimmed,
    by_group=_precision_by_group,
    best=lambda result, data: result["mAP"][AVERAGE],
    prefix="detection-",
    score="average mAP",
    tested="videos",
    paper={"thumos14": "THUMOS-14"},
    has_costs=False,
    notes=(
        "paper: AdaTAD-B, average mAP at tIoU 0.3 to 0.7; a group of classes has the mean of theirs",
        "last step: the average of the weights; best: the checkpoint that was best on these same videos",
    ),
)
BOUNDARIES = Task(
    recipe=RECIPES / "boundaries.py",
    settings="Boundaries",
    build=build_gebd,
    known={},
    draw_groups=_draw_boundaries,
    by_group=_average_f1,
    best=lambda result, data: result[TABLE_9_COLUMNS[0]],
    prefix="boundaries-",
    score=TABLE_9_COLUMNS[0],
    tested="clips",
    paper={"kinetics_gebd": "Kinetics-GEBD", "tapos": "TAPOS"},
    has_costs=False,
    notes=(
        "paper: BasicGEBD-L4, F1@0.05; all is F1@0.05 here too, by the challenge's rule",
        "last step: the last weights; best: the checkpoint that was best on these same clips",
    ),
)
