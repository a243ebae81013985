"""Tests of a detector while it trains, with the average of its weights; the best checkpoint is kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast

from moss_vllm.data.detection.datasets import DetectionSplit
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.pixels import PixelSettings
from moss_vllm.detection.schema import collect_detections
from moss_vllm.detection.scores import AVERAGE, DetectionScores, score_detections
from moss_vllm.detection.testing import detect_videos
from moss_vllm.detection.windows import WindowSettings
from moss_vllm.runtime.screen import say
from moss_vllm.training.best import BestSoFar
from moss_vllm.training.loop import CheckpointKeeper


class PeriodicTest:
    """Tests the model in training, and keeps the best checkpoint by average mAP as OUT/best.

    Every process calls it and tests its share of the videos. Scores go to OUT/evals.jsonl, and a line for
    each video to OUT/evals/step-NNNNNN.

    Args:
        accelerator: the run's.
        model: the model in training.
        split: the videos to test on.
        windows, pixels: the run's.
        out: the run's folder.
        keeper: writes the checkpoints.
        averaged: has the model hold what is tested, within a `with`: `WeightAverage.in_model`.
        test: further arguments of `detect_videos`.

    Reference: AdaTAD tests on the test split and reports the best of ten epochs; `best.report` has both.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: AdaTAD,
        split: DetectionSplit,
        windows: WindowSettings,
        pixels: PixelSettings,
        out: Path,
        *,
        keeper: CheckpointKeeper,
        averaged: Callable[[], AbstractContextManager[None]],
        test: dict[str, Any],
    ) -> None:
        self.accelerator, self.model, self.split, self.out = accelerator, model, split, out
        self.windows, self.pixels, self.averaged, self.test = windows, pixels, averaged, test
        self.best = BestSoFar(out, keeper)

    def __call__(self, step: int) -> None:
        """Test, print, log, and keep the model if none was better."""
        folder = self.out / "evals" / f"step-{step:06d}"
        self.model.eval()
        options = {**self.test, "quiet": not self.accelerator.is_main_process}
        options |= {"header": {"checkpoint": f"step {step}"}}
        with self.averaged():
            for statistic in self.model.buffers():  # each process has averaged its own
                broadcast(statistic)
            # Overwritten, as a killed run may have left lines of other weights there.
            detect_videos(
                self.model, self.split, self.windows, self.pixels, folder, overwrite=True, **options
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.keep(step, score_detections(self.split, collect_detections(folder, self.split)))
        self.accelerator.wait_for_everyone()

    def keep(self, step: int, scores: DetectionScores) -> None:
        """Log the scores; write OUT/best if no earlier test scored as high."""
        self.best.add(step, scores.mean[AVERAGE], scores.summary())
        values = {f"test/mAP {name}": value for name, value in scores.mean.items()}
        self.accelerator.log(values, step=step)
        say(f"step {step}: {scores}; {self.best.report()}", flush=True)
