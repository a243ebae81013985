"""Tests of a boundary model while it trains; the checkpoint with the best F1@0.05 is kept."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast

from moss_vllm.boundaries.batches import ClipSettings
from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.boundaries.predictions import pick_boundaries
from moss_vllm.boundaries.schema import collect_scores
from moss_vllm.boundaries.scores import TABLE_9_COLUMNS, BoundaryScores, score_boundaries
from moss_vllm.boundaries.testing import find_boundaries
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.runtime.screen import say
from moss_vllm.training.best import BestSoFar
from moss_vllm.training.loop import CheckpointKeeper


class PeriodicTest:
    """Tests the model in training, and keeps the best checkpoint by F1@0.05 as OUT/best.

    Every process calls it and tests its share of the clips. Scores go to OUT/evals.jsonl, and a line for each
    clip to OUT/evals/step-NNNNNN.

    Args:
        accelerator: the run's.
        model: the model in training.
        split: the clips to test on.
        clips: the run's.
        out: the run's folder.
        keeper: writes the checkpoints.
        threshold: from which a score is a boundary.
        test: further arguments of `find_boundaries`.

    Reference: EfficientGEBD tests on the split that it reports and takes the best of all epochs;
    `best.report` has the last test as well.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: GEBD,
        split: BoundarySplit,
        clips: ClipSettings,
        out: Path,
        *,
        keeper: CheckpointKeeper,
        threshold: float,
        test: dict[str, Any],
    ) -> None:
        self.accelerator, self.model, self.split, self.out = accelerator, model, split, out
        self.clips, self.threshold, self.test = clips, threshold, test
        self.best = BestSoFar(out, keeper)

    def __call__(self, step: int) -> None:
        """Test, print, log, and keep the model if none was better."""
        folder = self.out / "evals" / f"step-{step:06d}"
        self.model.eval()
        for statistic in self.model.buffers():  # DDP sends the main process's to the others in the next step
            broadcast(statistic)
        options = {**self.test, "quiet": not self.accelerator.is_main_process}
        options |= {"header": {"checkpoint": f"step {step}"}}
        # Overwritten, as a killed run may have left lines of other weights there.
        find_boundaries(self.model, self.split, self.clips, folder, overwrite=True, **options)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            found = pick_boundaries(self.split, collect_scores(folder, self.split), self.threshold)
            self.keep(step, score_boundaries(self.split, found))
        self.accelerator.wait_for_everyone()

    def keep(self, step: int, scores: BoundaryScores) -> None:
        """Log the scores; write OUT/best if no earlier test scored as high."""
        self.best.add(step, scores.mean[TABLE_9_COLUMNS[0]], scores.summary())
        self.accelerator.log({f"test/{name}": value for name, value in scores.mean.items()}, step=step)
        say(f"step {step}: {scores}; {self.best.report()}", flush=True)
