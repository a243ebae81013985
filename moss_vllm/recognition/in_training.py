"""Tests of a classifier while it trains; the best checkpoint so far is kept."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.scores import Accuracy, collect_clips
from moss_vllm.recognition.testing import score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.screen import say
from moss_vllm.training.run_folder import put_in_place

BEST = "best"


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
        save: called with a folder, the trained state and the step, to write a checkpoint.
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
        save: Callable[..., None],
        test: dict[str, Any],
    ) -> None:
        self.accelerator, self.model, self.split, self.out = accelerator, model, split, out
        self.save, self.test = save, test
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
        score = accuracy.main(self.split.dataset)
        earlier = {line["step"]: line["score"] for line in self.lines()}
        # OUT/best may be missing (killed while it was replaced) or from a step that this run no longer has
        # (resumed from an earlier one): then it is written anew.
        if self.best_step() not in earlier or score > max(earlier.values()):
            unfinished = self.out / f".{BEST}.unfinished"
            self.save(unfinished, self.model.trained_state(), step)
            put_in_place(unfinished, self.out / BEST)
        line = {"step": step, "score": score, **accuracy.summary()}
        with (self.out / "evals.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log(
            {f"test/{name}": line[name] for name in ("top1", "top5", "class_mean")}, step=step
        )
        say(f"step {step}, one view each: {accuracy}", flush=True)

    def lines(self) -> list[dict[str, Any]]:
        """The tests so far; a resumed run drops those after its checkpoint."""
        file = self.out / "evals.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def best_step(self) -> int:
        """The step of OUT/best; 0 if there is none."""
        folder = self.out / BEST
        return int(checkpoint.read_run(folder)["step"]) if folder.is_dir() else 0

    def last_step(self) -> int:
        """The step of the last test; 0 if there is none."""
        return max((line["step"] for line in self.lines()), default=0)
