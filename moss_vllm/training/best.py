"""Scores of a model while it trains: a line a test in OUT/evals.jsonl, the best checkpoint as OUT/best."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.training.loop import CheckpointKeeper
from moss_vllm.training.run_folder import put_in_place

BEST = "best"
EVALS_FILE = "evals.jsonl"


class BestSoFar:
    """The tests of a run; the main process adds to them.

    Args:
        out: the run's folder.
        keeper: writes the checkpoints of the model in training.
    """

    def __init__(self, out: Path, keeper: CheckpointKeeper) -> None:
        self.out, self.keeper = out, keeper

    def add(self, step: int, score: float, summary: Mapping[str, Any]) -> None:
        """Log the scores of a step; write OUT/best if no earlier test scored as high."""
        earlier = {line["step"]: line["score"] for line in self.lines()}
        # OUT/best may be missing (killed while it was replaced) or from a step that this run no longer has
        # (resumed from an earlier one): then it is written anew.
        if self.best_step() not in earlier or score > max(earlier.values()):
            unfinished = self.out / f".{BEST}.unfinished"
            self.keeper.save(unfinished, self.keeper.state(), step)
            put_in_place(unfinished, self.out / BEST)
        with (self.out / EVALS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "score": score, **summary}) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The tests so far; a resumed run drops those after its checkpoint."""
        file = self.out / EVALS_FILE
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def best_step(self) -> int:
        """The step of OUT/best; 0 if there is none."""
        folder = self.out / BEST
        return int(read_json(folder / RUN_FILE)["step"]) if folder.is_dir() else 0

    def last_step(self) -> int:
        """The step of the last test; 0 if there is none."""
        return max((line["step"] for line in self.lines()), default=0)

    def report(self) -> str:
        """The scores of the last test and of the best; the best of many on the same data flatters."""
        scores = {line["step"]: line["score"] for line in self.lines()}
        steps = {"last": self.last_step(), "best": self.best_step()}
        told = [
            f"{name} {scores[step]:.2f} (step {step:,})" for name, step in steps.items() if step in scores
        ]
        return f"{', '.join(told)}, of {len(scores):,} tests"
