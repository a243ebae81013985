"""Training and testing a video classifier: what is minimised, clips shown from several views, scores.

clips of this process -> views (workers) -> model -> softmax, averaged over views -> a line each in the store
stores of all processes -> Accuracy: top-1, top-5, mean over classes
"""

import csv
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.recognition.views import NO_LABEL, ActionTestSet, ViewSettings
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.line_store import ANSWERS, REMEDY, AnswerFile, Shard, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.runtime.screen import say
from moss_vllm.training.loop import Objective
from moss_vllm.training.reading import Batches
from moss_vllm.video.file_state import describe_file, refuse_others

TOP = 5
# FineGym's classes are of very different sizes, and its authors report the mean over them.
CLASS_MEAN = ("gym99", "gym288")


class ClassLoss(Objective):
    """Sum of the cross entropy over clips, with smoothed labels (Table 7)."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, *, smoothing: float = 0.1) -> None:
        super().__init__(model, dtype)
        self.smoothing = smoothing

    def forward(self, video: Tensor, labels: Tensor) -> Tensor:
        """Loss of one micro-batch from `ActionTrainingSet.collate`."""
        with self.autocast(labels.device):
            logits = self._score(video, labels)
        return F.cross_entropy(
            logits.float(), labels, reduction="sum", label_smoothing=self.smoothing, ignore_index=NO_LABEL
        )

    def _score(self, video: Tensor, labels: Tensor) -> Tensor:
        if bool((labels != NO_LABEL).any()):
            return cast(Tensor, self.model(video))
        # No clip of this process could be read: it takes part for the others, and its statistics stay.
        self.model.eval()
        logits = cast(Tensor, self.model(video))
        self.model.train()
        return logits


@dataclass
class Accuracy:
    """What a test found, in percent of its clips; those that could not be read count as wrong.

    Args:
        rows: one of each clip: `uid`, `label` (its class id, by which classes are counted: names may repeat),
            `guesses` (ids of the likeliest), `task` and `answer` (the name of its class), `output`
            and `parsed` (of the likeliest), `correct`, `in_top5`, `top5`.
        pending: clips that other processes have not tested yet.
        failed: why clips could not be read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    pending: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Clips whose likeliest class is theirs."""
        return self._percent("correct", self.rows)

    @property
    def top5(self) -> float:
        """Clips whose class is among the five likeliest."""
        return self._percent("in_top5", self.rows)

    @property
    def class_mean(self) -> float:
        """Mean of the classes' top-1 accuracies; classes without a clip have none."""
        found = self.by("label")
        return sum(percent for percent, _ in found.values()) / max(1, len(found))

    def by(self, key: str) -> dict[Any, tuple[float, int]]:
        """Top-1 accuracy and number of clips of each value of a row's entry."""
        members = defaultdict(list)
        for row in self.rows:
            members[row[key]].append(row)
        return {name: (self._percent("correct", rows), len(rows)) for name, rows in sorted(members.items())}

    def main(self, data: str) -> float:
        """The number a dataset is judged by: top-1, for FineGym its mean over classes."""
        return self.class_mean if data in CLASS_MEAN else self.top1

    def summary(self) -> dict[str, Any]:
        """All of it in a few numbers."""
        scores = {"top1": self.top1, "top5": self.top5, "class_mean": self.class_mean}
        return {**scores, "clips": len(self.rows), "failed": len(self.failed), "pending": self.pending}

    def __str__(self) -> str:
        """The scores in a line."""
        told = f"top-1 {self.top1:.2f}, top-5 {self.top5:.2f}, mean over classes {self.class_mean:.2f}"
        unread = (
            f", {len(self.failed):,} of which could not be read and count as wrong" if self.failed else ""
        )
        return f"{told} of {len(self.rows):,} clips{unread}"

    @staticmethod
    def _percent(key: str, rows: Sequence[Mapping[str, Any]]) -> float:
        return 100 * sum(bool(row[key]) for row in rows) / max(1, len(rows))


def score_clips(
    model: nn.Module,
    split: ActionSplit,
    views: ViewSettings,
    folder: Path,
    *,
    header: Mapping[str, Any],
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    shard: Shard | None = None,
    read: Any = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> Accuracy:
    """Score the clips that `folder` has no line for; a killed test goes on with the same call.

    Args:
        model: in evaluation mode.
        header: what was tested; a store with another is refused, and one of other weights or another dtype.
        batch_size: clips at once, all views of each.
        shard: which clips are this process's; processes do not wait for each other.
        read: as of `ActionTestSet`.

    Raises:
        ValueError: a store of another test.
        RunStopped: no memory for a batch, or a worker that hangs.
    """
    shard = shard or Shard()
    settings = {"name": "views", **{k: v for k, v in vars(views).items() if k not in ("mean", "std")}}
    known = {"benchmark": split.dataset, "protocol": settings, "questions": len(split.clips), **header}
    known |= {"weights": fingerprint(model.state_dict()), "dtype": str(dtype or torch.float32)}
    known = json.loads(json.dumps(known))
    earlier = read_answers(folder / ANSWERS, CLIP_SCHEMA, known) if not overwrite else None
    done = {} if earlier is None else {**earlier.answers, **earlier.failed}
    paths = {clip.clip_id: clip.path for clip in split.clips}
    refuse_others(paths, {} if earlier is None else earlier.files)
    places = range(shard.rank, len(split.clips), shard.processes)
    left = [place for place in places if split.clips[place].clip_id not in done]
    dataset = ActionTestSet(split, views, **({} if read is None else {"read": read}))
    with AnswerFile(folder / ANSWERS, known, shard, overwrite=overwrite) as file:
        lines = _score(model, split, dataset, left, batch_size, workers, torch.device(device), dtype)
        lines = _named_errors(lines, batch_size)
        shown = lines if quiet else show_progress(lines, len(left), "clips")
        for line in shown:
            if "path" in line and (state := describe_file(line["path"])):
                line["file"] = state
            file.add(line)
        file.check()
    return collect_clips(folder, split, known)


def collect_clips(folder: Path, split: ActionSplit, header: Mapping[str, Any] | None = None) -> Accuracy:
    """What the files of all processes in `folder` say of a split so far.

    Lines of earlier versions have no `label`; the split has it.

    Raises: ValueError where a line says that a clip is of another class than the split says.
    """
    stored = read_answers(folder / ANSWERS, CLIP_SCHEMA, header)
    rows, failed, pending = [], {}, 0
    for clip in split.clips:
        its: dict[str, Any] = dict.fromkeys(("task", "answer"), split.classes[clip.label])
        its |= {"uid": clip.clip_id, "label": clip.label}
        if clip.clip_id in stored.answers:
            row = stored.answers[clip.clip_id]
            if other := [f"{key} {row[key]!r}" for key in its if key in row and row[key] != its[key]]:
                told = f"clip {clip.clip_id} has {', '.join(other)}, {split.file} says class {clip.label} ("
                raise ValueError(f"{folder / ANSWERS}: {told}{its['answer']!r}); {REMEDY}")
            rows.append({**row, **its})
        elif clip.clip_id in stored.failed:
            failed[clip.clip_id] = stored.failed[clip.clip_id]
            rows.append({**its, "correct": False, "in_top5": False})
        else:
            pending += 1
    return Accuracy(rows, pending, failed)


def save_accuracy(accuracy: Accuracy, folder: Path, about: Mapping[str, Any]) -> None:
    """Write result.json and per_class.csv."""
    with whole_file(folder / "result.json") as part:
        part.write_text(json.dumps({**about, **accuracy.summary()}, indent=2) + "\n")
    names = {row["label"]: row["answer"] for row in accuracy.rows}
    with whole_file(folder / "per_class.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["id", "class", "top1", "clips"])
        for label, (percent, count) in accuracy.by("label").items():
            write([label, names[label], f"{percent:.2f}", count])


@torch.inference_mode()
def _score(
    model: nn.Module,
    split: ActionSplit,
    dataset: ActionTestSet,
    places: Sequence[int],
    batch_size: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[dict[str, Any]]:
    """A line of the store for each clip."""
    batches = Batches(
        Subset(cast(Dataset[Any], dataset), places),
        list,
        name=lambda place: dataset.name(places[place]),
        workers=workers,
        batch_size=batch_size,
    )
    names = split.classes
    paths = {clip.clip_id: os.path.abspath(clip.path) for clip in split.clips}
    autocast = Objective(model, dtype).autocast
    with batches:
        for batch in batches:
            for row in (row for row in batch if isinstance(row, Rejected)):
                say(f"clip {row.row_id} not scored: {row.reason}", file=sys.stderr, flush=True)
                yield {"video_id": row.row_id, "failed": row.reason, "answers": []}
            used = [row for row in batch if not isinstance(row, Rejected)]
            if not used:
                continue
            with autocast(device):
                logits = model(torch.cat([views for _, views, _ in used]).to(device))
            likely = logits.float().softmax(-1).unflatten(0, (len(used), -1)).mean(1).cpu()
            for (clip_id, _, label), row in zip(used, likely, strict=True):
                best = row.topk(min(TOP, len(names))).indices.tolist()
                answer = {
                    "uid": clip_id,
                    "label": label,
                    "guesses": best,
                    "task": names[label],
                    "output": names[best[0]],
                    "parsed": names[best[0]],
                    "answer": names[label],
                    "correct": best[0] == label,
                    "in_top5": label in best,
                    "top5": [[names[index], round(float(row[index]), 6)] for index in best],
                }
                yield {"video_id": clip_id, "path": paths[clip_id], "answers": [answer]}


def _named_errors(lines: Iterator[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    remedy = "clips so far are kept, the same command goes on"
    try:
        yield from lines
    except torch.OutOfMemoryError as error:
        raise RunStopped(f"no memory for {batch_size} clips at once; lower --batch-size; {remedy}") from error
