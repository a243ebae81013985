"""Testing a boundary model: a clip is read a slice at a time, and the scores of its frames stored at once.

clips of this process -> frames of each slice (workers) -> model -> scores of the frames -> a line per clip
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moss_vllm.boundaries.batches import ClipSettings, ClipSlice, count_slices, read_slice
from moss_vllm.boundaries.predictions import FrameScores
from moss_vllm.boundaries.schema import BOUNDARY_SCHEMA, as_answer
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.data.rows import Rejected, digest_rows
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import describe_environment, fingerprint
from moss_vllm.runtime.screen import say
from moss_vllm.training.loop import Objective
from moss_vllm.training.reading import Batches
from moss_vllm.video.clip import read_frames
from moss_vllm.video.file_state import describe_file, refuse_others
from moss_vllm.video.frames import BadVideo

# A slice of a clip by its number, and the scores of its frames, or why they cannot be read.
Tested = tuple[BoundaryVideo, int, FrameScores | Rejected]


class BoundaryTestSet:
    """The slices of clips, in order; a clip of Kinetics-GEBD is one slice.

    Args:
        videos: the clips.
        clips: how they are read.
        read: `read_frames`, or the `read_frames` of a FrameCache.
    """

    def __init__(
        self,
        videos: Sequence[BoundaryVideo],
        clips: ClipSettings,
        *,
        read: Callable[..., np.ndarray] = read_frames,
    ) -> None:
        self.clips, self.read = clips, read
        self.counts = {video.video_id: count_slices(video, clips) for video in videos}
        self.rows = [(video, number) for video in videos for number in range(self.counts[video.video_id])]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The file or folder of a slice's clip."""
        return self.rows[index][0].path

    def __getitem__(self, index: int) -> ClipSlice | Rejected:
        """A slice with its frames; Rejected for a clip that cannot be read."""
        video, number = self.rows[index]
        try:
            return read_slice(video, number, self.clips, read=self.read)
        except BadVideo as error:
            return Rejected(video.video_id, str(error))


def find_boundaries(
    model: nn.Module,
    split: BoundarySplit,
    clips: ClipSettings,
    folder: Path,
    *,
    header: Mapping[str, Any],
    workers: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    shard: Shard | None = None,
    read: Callable[..., np.ndarray] | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> int:
    """Test on the clips that `folder` has no line for; the same call resumes a test that was killed.

    Args:
        model: in evaluation mode; clips (1, T, 3, H, W) -> logits (1, T).
        header: what is tested. A store of another test, of other weights or of another dtype is refused; with
            `model_settings` (`LoadedBoundaryModel.settings_digest`), a moved checkpoint is no other test.
        shard: which clips are this process's; processes do not wait for each other.
        read: as in `BoundaryTestSet`.

    Returns: the number of clips that other processes have not tested yet.

    Raises:
        ValueError: the store belongs to another test, or outputs that are not finite.
        RunStopped: no memory for a slice, or a worker that hangs.
    """
    shard = shard or Shard()
    full = {**describe_test(model, split, clips, dtype), **json.loads(json.dumps(dict(header)))}
    full["environment"] = describe_environment(model)
    earlier = read_answers(folder / ANSWERS, BOUNDARY_SCHEMA, full) if not overwrite else None
    refuse_others({video.video_id: video.path for video in split.videos}, earlier.files if earlier else {})
    done = {*earlier.answers, *earlier.failed} if earlier else set()
    own = split.videos[shard.rank :: shard.processes]
    rest = [video for video in own if video.video_id not in done]
    dataset = BoundaryTestSet(rest, clips, read=read or read_frames)
    batches = Batches(dataset, list, name=dataset.name, workers=workers, batch_size=1)
    autocast = Objective(model, dtype).autocast
    # What interrupts a line ends the workers here: the generators would be closed with the process, too late.
    with AnswerFile(folder / ANSWERS, full, shard, overwrite=overwrite) as file, batches:
        tested = _test(model, dataset, batches, torch.device(device), autocast)
        tested = _named_errors(tested, f"{clips.frames} frames of {clips.size_px} x {clips.size_px}")
        shown = (
            tested if quiet else show_progress(tested, len(dataset), "slices" if clips.sliced else "clips")
        )
        for line in _by_clip(shown, dataset.counts):
            file.add(line)
        file.check()
    stored = read_answers(folder / ANSWERS, BOUNDARY_SCHEMA, full)
    return sum(video.video_id not in {*stored.answers, *stored.failed} for video in split.videos)


def describe_test(
    model: nn.Module, split: BoundarySplit, clips: ClipSettings, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """What decides the scores of frames, beside the model's settings; for json."""
    videos = [[video.video_id, video.duration_s, video.frames] for video in split.videos]
    return {
        "benchmark": split.dataset,
        "protocol": {"name": "boundaries", **asdict(clips)},
        "questions": len(split.videos),
        "data": digest_rows(videos),
        "weights": fingerprint(model.state_dict()),
        "dtype": str(dtype or torch.float32),
    }


@torch.inference_mode()
def _test(
    model: nn.Module,
    dataset: BoundaryTestSet,
    batches: Batches,
    device: torch.device,
    autocast: Callable[[torch.device], AbstractContextManager[Any]],
) -> Iterator[Tested]:
    """The scores of every slice."""
    failed = None
    for (video, number), (row,) in zip(dataset.rows, batches, strict=True):
        failed = None if number == 0 else failed
        failed = failed or (row if isinstance(row, Rejected) else None)
        if failed:
            yield video, number, failed
            continue
        with autocast(device):
            logits = model(row.pixels[None].to(device))[0]
        if not logits.isfinite().all():
            told = "the model's outputs are NaN or infinite"
            raise ValueError(f"{video.video_id}, slice {number}: {told}; use another checkpoint")
        scores = logits.double().sigmoid().cpu().numpy()
        yield video, number, FrameScores(row.numbers[row.mask], scores[row.mask])


def _by_clip(tested: Iterable[Tested], counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """A line of the store for each clip, once the last of its `counts` slices is there."""
    slices: list[FrameScores] = []
    for video, number, found in tested:
        if isinstance(found, FrameScores):
            slices = [*(slices if number else ()), found]
        if number + 1 < counts[video.video_id]:
            continue
        if isinstance(found, Rejected):  # if one slice is, all after it are
            say(f"clip {video.video_id} not tested: {found.reason}", file=sys.stderr, flush=True)
            yield {"video_id": video.video_id, "failed": found.reason, "answers": []}
            continue
        columns = (np.concatenate([getattr(one, name) for one in slices]) for name in ("numbers", "scores"))
        answer = as_answer(video.video_id, FrameScores(*columns))
        line = {"video_id": video.video_id, "path": os.path.abspath(video.path), "answers": [answer]}
        yield line | ({"file": state} if (state := describe_file(video.path)) else {})


def _named_errors(tested: Iterator[Tested], size: str) -> Iterator[Tested]:
    """The same slices; lack of memory ends them with RunStopped, which names a remedy."""
    try:
        yield from tested
    except torch.OutOfMemoryError as error:
        kept = "the clips tested so far are kept, the same command tests the others"
        told = f"no memory for a clip of {size}; test on another device, or with --precision bf16; {kept}"
        raise RunStopped(told) from error
