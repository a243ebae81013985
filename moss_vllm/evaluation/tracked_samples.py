"""Sample answers of a model in training, for the run's tracker: a strip of a clip's frames, and words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from numpy.typing import NDArray

from moss_vllm.evaluation.protocols import LETTERS
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.frames import BadVideo

MOST_SAMPLES = 4
STRIP = Sampling(sample_fps=2.0, short_side_px=112, max_frames=6)
GAP_PX = 4  # between frames
COLUMNS = ("step", "video", "question", "right answer", "answer", "judged")


class TrackedSamples:
    """Logs the same few questions at every check-up, each with frames spread over its clip.

    TensorBoard gets an image and a text for each; W&B a table; trackio images with the words as captions.

    Args:
        accelerator: whose trackers are open.
        paths: of videos, by id.
    """

    def __init__(self, accelerator: Accelerator, paths: Mapping[str, Path | None]) -> None:
        self.accelerator, self.paths = accelerator, paths
        self.strips: dict[str, NDArray[np.uint8] | None] = {}

    def log(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log the first samples of a line of evals.jsonl."""
        samples = samples[:MOST_SAMPLES]
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, TensorBoardTracker):
                for number, sample in enumerate(samples, start=1):
                    if (strip := self._strip(sample["video"])) is not None:
                        tracker.log_images({f"samples/{number}": strip[None]}, step, dataformats="NHWC")
                    tracker.log({f"samples/{number}": in_words(sample)}, step)
            elif isinstance(tracker, WandBTracker):
                import wandb

                strips = [self._strip(sample["video"]) for sample in samples]
                images = [None if strip is None else wandb.Image(strip) for strip in strips]
                rows = [[step, *_cells(one), image] for one, image in zip(samples, images, strict=True)]
                tracker.log_table("samples", columns=[*COLUMNS, "frames"], data=rows, step=step)
            elif isinstance(tracker, TrackioTracker):
                import trackio

                for number, sample in enumerate(samples, start=1):
                    if (strip := self._strip(sample["video"])) is not None:
                        image = trackio.Image(strip, caption=in_words(sample))
                        tracker.log({f"samples/{number}": image}, step)

    def _strip(self, video: str) -> NDArray[np.uint8] | None:
        """Frames side by side, read once; None for a video that cannot be read."""
        if video not in self.strips:
            path = self.paths.get(video)
            try:
                self.strips[video] = None if path is None else _side_by_side(read_clip(path, STRIP).frames)
            except BadVideo:  # its answer counts as wrong, which the check-up has said
                self.strips[video] = None
        return self.strips[video]


def in_words(sample: Mapping[str, Any]) -> str:
    """Question, options, the right answer and the model's, as Markdown."""
    video, question, right, said, judged = _cells(sample)
    options = "\n".join(
        f"- {letter}. {text}" for letter, text in zip(LETTERS, sample["options"], strict=False)
    )
    return f"{question}\n\n{options}\n\nright: **{right}**\n\n{judged}: **{said}**\n\nvideo {video}"


def _cells(sample: Mapping[str, Any]) -> list[str]:
    """The columns but for the step."""
    judged = "answered, which is right" if sample["correct"] else "answered, which is wrong"
    return [str(sample[name]) for name in ("video", "question", "answer", "output")] + [judged]


def _side_by_side(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) -> (H, T W and the gaps, 3)."""
    count, height, width, _ = frames.shape
    strip = np.full((height, count * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        left = number * (width + GAP_PX)
        strip[:, left : left + width] = frame
    return strip
