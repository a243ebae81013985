"""Reads a training run's folder, also of a run under way or killed, and names what cannot be read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moss_vllm.report.html import counted
from moss_vllm.runtime.files import tell_existing
from moss_vllm.runtime.line_store import ANSWERS
from moss_vllm.training.run_folder import FINISHED_FILE, SETTINGS_FILE, latest_checkpoint

TRAIN, EVALS, REJECTED = "train.jsonl", "evals.jsonl", "rejected.jsonl"
HELD_OUT = "held_out_loss"  # in a line of its own
TEST_RESULT = "test/result.json"  # of the test after training, but for a video LLM
MISSING = {  # what a missing file means
    SETTINGS_FILE: "the settings, the number of steps and what trains are not known",
    TRAIN: "no step was logged",
    EVALS: "no question was asked in training (--eval-data asks some)",
    REJECTED: "which rows were rejected before the first step is not known",
}
MISSING_OF_CLASSIFIER = {
    **{name: MISSING[name] for name in (SETTINGS_FILE, TRAIN)},
    EVALS: "no test was finished in training (--eval-every sets how often)",
}
# Of a classifier's test, of a detector's, and of a boundary model's.
SCORES = {"top1": "Top-1", "top5": "Top-5", "class_mean": "Mean over classes"}
SCORES |= {"mAP avg": "Average mAP", "mAP 0.3": "mAP at tIoU 0.3", "mAP 0.7": "mAP at tIoU 0.7"}
SCORES |= {"F1@0.05": "Boundary F1 at 0.05", "Avg. F1": "Average F1"}
MOST_STEP = 2**53  # the page's script counts exactly up to here
LINES_NAMED = 10  # unreadable lines of a file that are named; all are counted


@dataclass
class RunFiles:
    """A run's files. `faults` names what could not be read, `absent` the files that are missing.

    `evals` maps a benchmark (None for tests of other models than video LLMs) to the line of each step, and
    `held_out` a step to the held-out loss measured after it.
    """

    folder: Path
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    held_out: dict[int, Any] = field(default_factory=dict)
    evals: dict[str | None, dict[int, dict[str, Any]]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    not_finite: list[dict[str, Any]] = field(default_factory=list)
    finished: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    written: datetime | None = None
    faults: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe's settings; empty if settings.json has none."""
        settings = self.report.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def unit(self) -> str:
        """What a step counts beside clips: "tokens" for a video LLM, "frames" for other models."""
        line = next(iter(self.steps.values()), {})
        return (
            "frames" if "frames" in line or {"views", "windows", "clips"} & self.report.keys() else "tokens"
        )

    @property
    def loss_of(self) -> str:
        """What the loss is a mean over."""
        if "clips" in self.report:  # of a boundary model
            return "of a frame"
        return {"tokens": "of an answer token", "frames": "of a clip"}[self.unit]

    @property
    def last_step(self) -> int:
        """The last logged step, 0 before the first."""
        return max(self.steps, default=0)

    @property
    def planned(self) -> int | None:
        """The number of steps that the run was started for.

        A classifier's settings may leave it open; then the start report has it.
        """
        steps = self.settings.get("steps")
        steps = self.report.get("steps") if steps is None else steps
        return steps if isinstance(steps, int) else None

    def stopped_at(self) -> dict[str, Any] | None:
        """The record of the non-finite loss or gradient that ended the run; None if it was resumed since."""
        if self.finished:
            return None
        return next((record for record in self.not_finite if record["step"] == self.last_step + 1), None)


def read_run_files(folder: Path) -> RunFiles:
    """Everything but the weights in the folder of a run of a script in recipes/.

    Raises: FileNotFoundError for a folder that holds neither a run's files nor answers.
    """
    if not any((folder / name).is_file() for name in MISSING):
        raise FileNotFoundError(_no_run(folder))
    run = RunFiles(folder, checkpoint=latest_checkpoint(folder))
    for line in _read_lines(folder / TRAIN, run.faults, needs_step=True):
        if HELD_OUT in line:
            run.held_out[line["step"]] = line[HELD_OUT]
        else:
            run.steps[line["step"]] = line
    for line in _read_lines(folder / EVALS, run.faults, needs_step=True):
        benchmark = line.get("benchmark")
        name = None if benchmark is None else str(benchmark)
        run.evals.setdefault(name, {})[line["step"]] = _with_map(line)
    run.steps, run.held_out = dict(sorted(run.steps.items())), dict(sorted(run.held_out.items()))
    run.evals = {name: dict(sorted(lines.items())) for name, lines in run.evals.items()}
    run.report = _read_object(folder / SETTINGS_FILE, run.faults)
    run.result = _with_map(_read_object(folder / TEST_RESULT, run.faults))
    run.rejected = _read_lines(folder / REJECTED, run.faults)
    for file in sorted(folder.glob("rejected-*.jsonl")):
        run.rejected += [{**row, "kind": "while training"} for row in _read_lines(file, run.faults)]
    for file in sorted(folder.glob("not-finite-step-*.json")):
        record = _read_object(file, run.faults)
        step = re.match(r"not-finite-step-(\d{1,15})", file.name)
        if record and step:
            run.not_finite.append({**record, "step": int(step[1]), "file": file.name})
    if (folder / FINISHED_FILE).is_file():
        run.finished = (folder / FINISHED_FILE).read_text(errors="replace").strip() or "no checkpoint"
    if (folder / TRAIN).is_file():
        run.written = datetime.fromtimestamp((folder / TRAIN).stat().st_mtime, timezone.utc)
    if unlogged := run.last_step - sum(step > 0 for step in run.steps):
        run.faults.append(
            f"{TRAIN}: {counted(unlogged, 'step')} before step {run.last_step:,} without a line"
        )
    missing = MISSING if run.unit == "tokens" else MISSING_OF_CLASSIFIER
    run.absent = [
        f"{name} is not there: {meaning}"
        for name, meaning in missing.items()
        if not (folder / name).is_file()
    ]
    return run


def _with_map(line: dict[str, Any]) -> dict[str, Any]:
    """The line with a detector's mAP as entries of its own: "mAP 0.5", "mAP avg"."""
    found = line.get("mAP")
    return line | {f"mAP {name}": value for name, value in found.items()} if isinstance(found, dict) else line


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        return f"{folder} is {what}; give the folder of a run or of an evaluation" + tell_existing(TRAIN)
    holder = folder.absolute().parent
    if latest_checkpoint(holder) and any((holder / name).is_file() for name in MISSING):
        return f"{folder} is a checkpoint of a run; give the run's folder, {folder.parent}"
    if folder.name == ANSWERS and any(folder.glob("*.jsonl")):
        return f"{folder} is a part of an evaluation; give its folder, {folder.parent}"
    return (
        f"{folder} is neither the folder of a run (it has no {', '.join(MISSING)}) nor of an evaluation (it "
        f"has no {ANSWERS}/*.jsonl); give the --out of a script in recipes/ or eval/"
    )


def _read_lines(file: Path, faults: list[str], *, needs_step: bool = False) -> list[dict[str, Any]]:
    """The objects of a jsonl file; lines that hold no object are counted and named in `faults`."""
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
        more = f" and {len(bad) - LINES_NAMED:,} more" if len(bad) > LINES_NAMED else ""
        named = ", ".join(f"{number:,}" for number in bad[:LINES_NAMED]) + more
        faults.append(f"{file.name}: {counted(len(bad), 'line')} cannot be read: {named}")
    if needs_step:
        places = {(line["step"], str(line.get("benchmark")), HELD_OUT in line) for line in lines}
        if repeated := len(lines) - len(places):
            faults.append(f"{file.name}: {counted(repeated, 'step')} logged twice; the later line is shown")
    return lines


def _read_object(file: Path, faults: list[str]) -> dict[str, Any]:
    """The object in a json file; empty for a missing file, or one that `faults` names from now on."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        faults.append(f"{file.name} cannot be read as JSON: {error}")
        return {}
    if not isinstance(value, dict):
        faults.append(f"{file.name} holds a {type(value).__name__}, not names with values")
        return {}
    return value
