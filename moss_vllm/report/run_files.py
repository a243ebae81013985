"""What a training run's folder holds, while it runs or after it was killed: nothing is skipped unsaid."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moss_vllm.report.html import count
from moss_vllm.runtime.files import tell_existing
from moss_vllm.training.run_folder import FINISHED_FILE, latest_checkpoint

# The first is run_folder.SETTINGS_FILE; importing that takes seconds, of transformers and peft.
SETTINGS, TRAIN, EVALS, REJECTED = "settings.json", "train.jsonl", "evals.jsonl", "rejected.jsonl"
MADE_BY = {  # what it means that a file is not there
    SETTINGS: "the settings, the number of steps and what trains are not known",
    TRAIN: "no step was logged",
    EVALS: "no question was asked in training (--eval-data asks some)",
    REJECTED: "which rows were rejected before the first step is not known",
}
ANSWERS = "answers"  # evaluation.STORE
MOST_STEP = 2**53  # what the page's script counts exactly
NAMED = 10  # unreadable lines of a file that are named; all are counted


@dataclass
class Run:
    """A run's files; `faults` says what could not be read, `absent` what is not there."""

    folder: Path
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    evals: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)  # by benchmark and step
    report: dict[str, Any] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    not_finite: list[dict[str, Any]] = field(default_factory=list)
    finished: str | None = None
    checkpoint: Path | None = None
    written: datetime | None = None
    faults: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe's settings; empty where they are not known."""
        found = self.report.get("settings")
        return found if isinstance(found, dict) else {}

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 before the first."""
        return max(self.steps, default=0)

    @property
    def planned(self) -> int | None:
        """How many steps the run is to do."""
        steps = self.settings.get("steps")
        return steps if isinstance(steps, int) else None

    def stopped_at(self) -> dict[str, Any] | None:
        """The loss or gradient that is not finite and ended the run; None if it went on from a checkpoint."""
        if self.finished:
            return None
        return next((one for one in self.not_finite if one["step"] == self.last_step + 1), None)


def holds_answers(folder: Path) -> bool:
    """Whether it is a result folder of a script in eval/.

    Raises: ValueError for a file of answers that is a pipe or a device: to open one may wait for ever.
    """
    files = list((folder / ANSWERS).glob("*.jsonl"))
    if strange := [str(file) for file in files if file.exists() and not file.is_file()]:
        raise ValueError(f"{strange[0]} is no file; remove it, or name another folder")
    return bool(files)


def read_run(folder: Path) -> Run:
    """Everything in the folder of a run of `recipes/favor_lora.py` but its weights.

    Raises: FileNotFoundError for a folder that holds none of a run's files, nor answers.
    """
    if not any((folder / name).is_file() for name in MADE_BY):
        raise FileNotFoundError(_no_run(folder))
    run = Run(folder, checkpoint=latest_checkpoint(folder))
    run.absent = [
        f"{name} is not there: {why}" for name, why in MADE_BY.items() if not (folder / name).is_file()
    ]
    for line in _read_lines(folder / TRAIN, run.faults, needs_step=True):
        run.steps[line["step"]] = line
    for line in _read_lines(folder / EVALS, run.faults, needs_step=True):
        run.evals.setdefault(str(line.get("benchmark")), {})[line["step"]] = line
    run.steps = dict(sorted(run.steps.items()))
    run.evals = {name: dict(sorted(lines.items())) for name, lines in run.evals.items()}
    if (folder / SETTINGS).is_file():
        run.report = _read_object(folder / SETTINGS, run.faults) or {}
    run.rejected = _read_lines(folder / REJECTED, run.faults)
    for file in sorted(folder.glob("rejected-*.jsonl")):
        run.rejected += [{**row, "kind": "while training"} for row in _read_lines(file, run.faults)]
    for file in sorted(folder.glob("not-finite-step-*.json")):
        found = _read_object(file, run.faults)
        step = re.match(r"not-finite-step-(\d{1,15})", file.name)
        if found is not None and step:
            run.not_finite.append({**found, "step": int(step[1]), "file": file.name})
    if (folder / FINISHED_FILE).is_file():
        run.finished = (folder / FINISHED_FILE).read_text(errors="replace").strip() or "no checkpoint"
    if (folder / TRAIN).is_file():
        run.written = datetime.fromtimestamp((folder / TRAIN).stat().st_mtime, timezone.utc)
    if missing := run.last_step - sum(step > 0 for step in run.steps):
        run.faults.append(f"{TRAIN}: {count(missing, 'step')} before step {run.last_step:,} without a line")
    return run


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        return f"{folder} is {what}; give the folder of a run or of an evaluation" + tell_existing(TRAIN)
    holder = folder.absolute().parent
    if latest_checkpoint(holder) and any((holder / name).is_file() for name in MADE_BY):
        return f"{folder} is a checkpoint of a run; give the run's folder, {folder.parent}"
    if folder.name == ANSWERS and any(folder.glob("*.jsonl")):
        return f"{folder} is a part of an evaluation; give its folder, {folder.parent}"
    return (
        f"{folder} is no folder of a run, for it holds none of {', '.join(MADE_BY)}, nor of an "
        f"evaluation, for it holds no {ANSWERS}/*.jsonl; give what was --out of recipes/favor_lora.py or of "
        "a script in eval/"
    )


def _read_lines(file: Path, faults: list[str], *, needs_step: bool = False) -> list[dict[str, Any]]:
    """The objects of a jsonl file; a line that holds none is counted and named in `faults`."""
    if not file.is_file():
        return []
    texts = file.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    bad: list[int] = []
    for number, text in enumerate(texts, start=1):
        if number == len(texts) and not text:  # after the last newline
            break
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            if number == len(texts):
                faults.append(
                    f"{file.name} ends in a torn line {number:,}: the run was killed, or writes it now"
                )
            else:
                bad.append(number)
            continue
        step = line.get("step") if isinstance(line, dict) else None
        is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < MOST_STEP
        if not isinstance(line, dict) or (needs_step and not is_step):
            bad.append(number)
            continue
        lines.append(line)
    if bad:
        more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        named = ", ".join(f"{number:,}" for number in bad[:NAMED]) + more
        faults.append(f"{file.name}: {count(len(bad), 'line')} cannot be read: {named}")
    if needs_step:
        seen = {(line["step"], str(line.get("benchmark"))) for line in lines}
        if again := len(lines) - len(seen):
            faults.append(f"{file.name}: {count(again, 'step')} logged twice; the later line is shown")
    return lines


def _read_object(file: Path, faults: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        faults.append(f"{file.name} cannot be read as JSON: {error}")
        return None
    if not isinstance(found, dict):
        faults.append(f"{file.name} holds a {type(found).__name__}, not names with values")
        return None
    return found
