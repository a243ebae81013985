"""Tests of a classifier while it trains; the best checkpoint so far is kept."""

import dataclasses
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.scores import Accuracy, collect_clips
from moss_vllm.recognition.testing import score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.screen import say
from moss_vllm.training.best import BestSoFar
from moss_vllm.training.loop import CheckpointKeeper


class PeriodicTest:
    """Tests the model in training with one view per clip, and keeps the best checkpoint so far as OUT/best.

    Every process calls it and scores its share of the clips. Scores go to OUT/evals.jsonl, and a line for
    each clip to OUT/evals/step-NNNNNN.

    Args:
        accelerator: the run's.
        model: the model in training.
        split: the clips to test on.
        views: the run's; number of clips, crops and test scale are replaced.
        out: the run's folder.
        keeper: writes the checkpoints.
        test: further arguments of `score_clips`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: VideoClassifier,
        split: ActionSplit,
        views: ViewSettings,
        out: Path,
        *,
        keeper: CheckpointKeeper,
        test: dict[str, Any],
    ) -> None:
        self.accelerator, self.model, self.split, self.out = accelerator, model, split, out
        self.best, self.test = BestSoFar(out, keeper), test
        # Scaled as in training, as the authors' code does: K400 and Diving48 to 256, of which 224 are cut.
        self.views = dataclasses.replace(views, clips=1, crops=1, test_scale=views.train_scale)

    def __call__(self, step: int) -> None:
        """Test, print, log, and keep the model if none was better."""
        folder = self.out / "evals" / f"step-{step:06d}"
        self.model.eval()
        for statistic in self.model.buffers():  # DDP sends the main process's to the others in the next step
            broadcast(statistic)
        header = {"checkpoint": f"step {step}"}
        options = {**self.test, "quiet": not self.accelerator.is_main_process}
        # Overwritten, as a killed run may have left lines of other weights there.
        score_clips(self.model, self.split, self.views, folder, header=header, overwrite=True, **options)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.keep(step, collect_clips(folder, self.split))
        self.accelerator.wait_for_everyone()

    def keep(self, step: int, accuracy: Accuracy) -> None:
        """Log the scores; write OUT/best if no earlier test scored as high."""
        summary = accuracy.summary()
        self.best.add(step, accuracy.main(self.split.dataset), summary)
        values = {f"test/{name}": summary[name] for name in ("top1", "top5", "class_mean")}
        self.accelerator.log(values, step=step)
        say(f"step {step}, one view each: {accuracy}", flush=True)
