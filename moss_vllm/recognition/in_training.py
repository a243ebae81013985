"""A classifier tested while it trains; the best so far is kept."""

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
from moss_vllm.recognition.testing import Accuracy, collect_clips, score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.screen import say
from moss_vllm.training.run_folder import put_in_place

BEST = "best"


class ActionCheckup:
    """Tests the model in training with one view a clip; the best so far is kept as OUT/best.

    Every process calls it and scores its share. What it finds goes to OUT/evals.jsonl, and a line for each
    clip to OUT/evals/step-NNNNNN.
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
        # Scaled as for training, as in the authors' code: K400 and Diving48 to 256, of which 224 are cut.
        self.views = dataclasses.replace(views, clips=1, crops=1, test_scale=views.train_scale)

    def __call__(self, step: int) -> None:
        """Test, print, log, and keep the model if none was better."""
        folder = self.out / "evals" / f"step-{step:06d}"
        self.model.eval()
        for statistic in self.model.buffers():  # DDP hands out the main process's in the next step only
            broadcast(statistic)
        header = {"checkpoint": f"step {step}"}
        how = {**self.test, "quiet": not self.accelerator.is_main_process}
        # What a killed run left there may be of other weights.
        score_clips(self.model, self.split, self.views, folder, header=header, overwrite=True, **how)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.keep(step, collect_clips(folder, self.split))
        self.accelerator.wait_for_everyone()

    def keep(self, step: int, found: Accuracy) -> None:
        """Log what was found; write OUT/best if nothing before was better."""
        score = found.main(self.split.dataset)
        earlier = {line["step"]: line["score"] for line in self.lines()}
        # Else it is of steps that this run has left, or gone: a kill may come while one takes its place.
        if self.best_step() not in earlier or score > max(earlier.values()):
            unfinished = self.out / f".{BEST}.unfinished"
            self.save(unfinished, checkpoint.trained_state(self.model), step)
            put_in_place(unfinished, self.out / BEST)
        line = {"step": step, "score": score, **found.summary()}
        with (self.out / "evals.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log(
            {f"test/{name}": line[name] for name in ("top1", "top5", "class_mean")}, step=step
        )
        say(f"step {step}, one view each: {found}", flush=True)

    def lines(self) -> list[dict[str, Any]]:
        """What was found so far; the run drops what is after the checkpoint it goes on from."""
        file = self.out / "evals.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def best_step(self) -> int:
        """The step of OUT/best; 0 without one."""
        folder = self.out / BEST
        return int(checkpoint.read_run(folder)["step"]) if folder.is_dir() else 0

    def last_step(self) -> int:
        """The step of the last test."""
        return max((line["step"] for line in self.lines()), default=0)
