"""Accuracy of a test: top-1, top-5 and the mean over classes, from the lines that its processes stored."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.line_store import ANSWERS, REMEDY, read_answers
from moss_vllm.runtime.versions import versions

# FineGym's classes are of very different sizes, and its authors report the mean over them.
CLASS_MEAN = ("gym99", "gym288")


@dataclass
class Accuracy:
    """Scores of a test in percent of its clips; a clip that could not be read counts as wrong.

    Args:
        rows: one per clip: `uid`, `label` (its class id, by which classes are counted: names may repeat),
            `guesses` (ids of the likeliest classes), `task` and `answer` (the name of its class), `output`
            and `parsed` (the name of the likeliest class), `correct`, `in_top5`, `top5`.
        pending: clips that other processes have not tested yet.
        failed: why clips could not be read, by clip.
        environment: of the process that began the test.
        notes: what differs in the environments of other processes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pending: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def top1(self) -> float:
        """Percent of clips whose likeliest class is the right one."""
        return self._percent("correct", self.rows)

    @property
    def top5(self) -> float:
        """Percent of clips whose class is among the five likeliest."""
        return self._percent("in_top5", self.rows)

    @property
    def class_mean(self) -> float:
        """Mean of the classes' top-1 accuracies, over the classes that have a clip."""
        classes = self.by("label")
        return sum(percent for percent, _ in classes.values()) / max(1, len(classes))

    def by(self, key: str) -> dict[Any, tuple[float, int]]:
        """Top-1 accuracy and number of clips for each value of a row's entry."""
        members = defaultdict(list)
        for row in self.rows:
            members[row[key]].append(row)
        return {name: (self._percent("correct", rows), len(rows)) for name, rows in sorted(members.items())}

    def main(self, data: str) -> float:
        """The number a dataset is judged by: the mean over classes for FineGym, top-1 for all others."""
        return self.class_mean if data in CLASS_MEAN else self.top1

    def summary(self) -> dict[str, Any]:
        """All scores and counts, as result.json holds them."""
        scores = {"top1": self.top1, "top5": self.top5, "class_mean": self.class_mean}
        return {**scores, "clips": len(self.rows), "failed": len(self.failed), "pending": self.pending}

    def __str__(self) -> str:
        """The scores in a line."""
        scores = f"top-1 {self.top1:.2f}, top-5 {self.top5:.2f}, mean over classes {self.class_mean:.2f}"
        unread = (
            f", {len(self.failed):,} of which could not be read and count as wrong" if self.failed else ""
        )
        return f"{scores} of {len(self.rows):,} clips{unread}"

    @staticmethod
    def _percent(key: str, rows: Sequence[Mapping[str, Any]]) -> float:
        return 100 * sum(bool(row[key]) for row in rows) / max(1, len(rows))


def collect_clips(folder: Path, split: ActionSplit, header: Mapping[str, Any] | None = None) -> Accuracy:
    """The accuracy on a split, from the lines that all processes have stored in `folder` so far.

    Lines that earlier versions wrote have no `label`; the split names it.

    Raises:
        ValueError: a line names another class for a clip than the split.
    """
    stored = read_answers(folder / ANSWERS, CLIP_SCHEMA, header)
    rows, failed, pending = [], {}, 0
    for clip in split.clips:
        expected: dict[str, Any] = dict.fromkeys(("task", "answer"), split.classes[clip.label])
        expected |= {"uid": clip.clip_id, "label": clip.label}
        if clip.clip_id in stored.answers:
            row = stored.answers[clip.clip_id]
            if other := [
                f"{key} {row[key]!r}" for key in expected if key in row and row[key] != expected[key]
            ]:
                raise ValueError(
                    f"{folder / ANSWERS}: clip {clip.clip_id} has {', '.join(other)}, {split.file} says "
                    f"class {clip.label} ({expected['answer']!r}); {REMEDY}"
                )
            rows.append({**row, **expected})
        elif clip.clip_id in stored.failed:
            failed[clip.clip_id] = stored.failed[clip.clip_id]
            rows.append({**expected, "correct": False, "in_top5": False})
        else:
            pending += 1
    return Accuracy(rows, pending, failed, stored.environment, stored.tell_mixed(versions()))


def save_accuracy(accuracy: Accuracy, folder: Path, about: Mapping[str, Any]) -> None:
    """Write result.json and per_class.csv."""
    content = {**about, **accuracy.summary(), "environment": accuracy.environment, "notes": accuracy.notes}
    with whole_file(folder / "result.json") as part:
        part.write_text(json.dumps(content, indent=2) + "\n")
    names = {row["label"]: row["answer"] for row in accuracy.rows}
    with whole_file(folder / "per_class.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["id", "class", "top1", "clips"])
        for label, (percent, count) in accuracy.by("label").items():
            write([label, names[label], f"{percent:.2f}", count])
