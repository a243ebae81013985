"""Testing a video classifier: each clip is shown in several views, and its scores are stored at once.

clips of this process -> views (workers) -> model -> softmax, averaged over views -> a line per clip, stored
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.batches import ActionTestSet
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.recognition.scores import Accuracy, collect_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import describe_environment, fingerprint
from moss_vllm.runtime.screen import say
from moss_vllm.training.loop import Objective
from moss_vllm.training.reading import Batches
from moss_vllm.video.file_state import describe_file, refuse_others

LIKELIEST = 5


def number_formats(model: nn.Module, dtype: torch.dtype | None) -> dict[str, str | None]:
    """What a test records of its arithmetic: `dtype`, and that of a frozen encoder where it is another."""
    rest = dtype or torch.float32
    encoder = getattr(getattr(model, "encoder", None), "dtype", None) or rest
    return {"dtype": str(rest), "encoder_dtype": None if encoder == rest else str(encoder)}


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
    """Score the clips that `folder` has no line for; the same call resumes a test that was killed.

    Args:
        model: in evaluation mode.
        header: what is tested. A store of another test, of other weights or of another dtype is refused; with
            `model_settings` (`LoadedClassifier.settings_digest`), a moved checkpoint is no other test.
        batch_size: clips at once, all views of each.
        shard: which clips are this process's; processes do not wait for each other.
        read: as in `ActionTestSet`.

    Raises:
        ValueError: the store belongs to another test.
        RunStopped: no memory for a batch, or a worker that hangs.
    """
    shard = shard or Shard()
    settings = {"name": "views", **{k: v for k, v in vars(views).items() if k not in ("mean", "std")}}
    full = {"benchmark": split.dataset, "protocol": settings, "questions": len(split.clips), **header}
    full |= {"weights": fingerprint(model.state_dict())}
    full |= {name: value for name, value in number_formats(model, dtype).items() if value}
    full["environment"] = describe_environment(model)
    full = json.loads(json.dumps(full))
    if not overwrite and _lacks_model_settings(folder / ANSWERS):
        full.pop("model_settings", None)
    earlier = read_answers(folder / ANSWERS, CLIP_SCHEMA, full) if not overwrite else None
    done = {} if earlier is None else {**earlier.answers, **earlier.failed}
    paths = {clip.clip_id: clip.path for clip in split.clips}
    refuse_others(paths, {} if earlier is None else earlier.files)
    places = range(shard.rank, len(split.clips), shard.processes)
    remaining = [place for place in places if split.clips[place].clip_id not in done]
    dataset = ActionTestSet(split, views, **({} if read is None else {"read": read}))
    batches = Batches(
        Subset(cast(Dataset[Any], dataset), remaining),
        list,
        name=lambda place: dataset.name(remaining[place]),
        workers=workers,
        batch_size=batch_size,
    )
    # What interrupts a line ends the workers here: the generators would be closed with the process, too late.
    with AnswerFile(folder / ANSWERS, full, shard, overwrite=overwrite) as file, batches:
        lines = _score(model, split, batches, torch.device(device), dtype)
        lines = _named_errors(lines, batch_size)
        for line in lines if quiet else show_progress(lines, len(remaining), "clips"):
            if "path" in line and (state := describe_file(line["path"])):
                line["file"] = state
            file.add(line)
        file.check()
    return collect_clips(folder, split, full)


def _lacks_model_settings(store: Path) -> bool:
    """Whether an earlier version began the store: it resumes with the checkpoint where that was."""
    header = read_answers(store, CLIP_SCHEMA).header
    return header is not None and "model_settings" not in header


@torch.inference_mode()
def _score(
    model: nn.Module,
    split: ActionSplit,
    batches: Batches,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[dict[str, Any]]:
    """A line of the store for each clip."""
    names = split.classes
    paths = {clip.clip_id: os.path.abspath(clip.path) for clip in split.clips}
    autocast = Objective(model, dtype).autocast
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
            best = row.topk(min(LIKELIEST, len(names))).indices.tolist()
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
    """The same lines; lack of memory ends them with RunStopped, which names a remedy."""
    remedy = "the clips scored so far are kept, the same command scores the others"
    try:
        yield from lines
    except torch.OutOfMemoryError as error:
        raise RunStopped(f"no memory for {batch_size} clips at once; lower --batch-size; {remedy}") from error
