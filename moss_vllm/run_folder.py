"""A training run's folder: whole checkpoints, logs that end where the last one does, nothing half-written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from moss_vllm.errors import RunStopped
from moss_vllm.files import whole_file

PROGRESS_FILE = "progress.json"
FINISHED_FILE = "finished"  # names the last checkpoint once all steps are done
LOGS = ("train.jsonl", "evals.jsonl")


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole `step-NNNNNN` folder of a run; unfinished ones have another name."""
    found = [path for path in out.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """How many steps the run had done when it wrote `step-NNNNNN`."""
    return int(checkpoint.name.removeprefix("step-"))


def refuse_second_run(out: Path) -> None:
    """FileExistsError for a folder with another run's checkpoints."""
    if found := latest_checkpoint(out):
        raise FileExistsError(f"{found} is there already; go on with --resume auto, or name another --out")


def open_checkpoint(folder: Path) -> dict[str, Any]:
    """What the run counted until it wrote this checkpoint.

    Raises:
        FileNotFoundError: not a checkpoint of a run, or one without its state.
        ValueError: its counts cannot be read.
    """
    file = folder / "state" / PROGRESS_FILE
    if not re.fullmatch(r"step-\d+", folder.name) or not file.is_file():
        raise FileNotFoundError(
            f"{folder}: no step-NNNNNN folder with a state; resume from a checkpoint of this run"
        )
    try:
        progress: dict[str, Any] = json.loads(file.read_text())
        if progress["step"] != step_of(folder):
            raise ValueError(f"it is of step {progress['step']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: cannot be used ({error}); resume from an earlier checkpoint") from error
    return progress


def tidy(out: Path, step: int) -> None:
    """Drop what a killed run left: unfinished checkpoints, and log lines after `step`."""
    (out / FINISHED_FILE).unlink(missing_ok=True)
    for left in out.glob(".step-*.unfinished"):
        shutil.rmtree(left)
    for file in (out / name for name in LOGS if (out / name).is_file()):
        kept = [line for line in file.read_text().splitlines(keepends=True) if _is_before(line, step)]
        with whole_file(file) as part:
            part.write_text("".join(kept))


def _is_before(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except ValueError:  # the last line of a run that was killed while it wrote
        return False


def write_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    *,
    save: Callable[[Path], None],
    save_state: Callable[[Path], None],
    progress: dict[str, Any],
) -> None:
    """Everything under a temporary name, forced to disk, renamed when whole.

    Args:
        save: writes what reloads alone; called by the main process.
        save_state: writes what resuming needs besides; called by every process.
        progress: the run's counts; `step` is among them.

    Raises:
        RunStopped: the disk is full or fails; what was written is removed, earlier checkpoints stay.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        save_state(unfinished / "state")
        if accelerator.is_main_process:
            (unfinished / "state" / PROGRESS_FILE).write_text(json.dumps(progress) + "\n")
            save(unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _force_to_disk(unfinished)
            if folder.exists():  # written by a run that was resumed from an earlier checkpoint since
                folder.rename(folder.with_name(f".{folder.name}.old.unfinished"))
            unfinished.rename(folder)
            _sync(folder.parent)
            shutil.rmtree(folder.with_name(f".{folder.name}.old.unfinished"), ignore_errors=True)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        free_gib = shutil.disk_usage(folder.parent).free / 2**30
        last = latest_checkpoint(folder.parent)
        kept = f"the last whole checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise RunStopped(
            f"{folder} could not be written: {error} ({free_gib:.1f} GiB are free there). Nothing "
            f"half-written is left and {kept}; mend the cause (a full disk: make room) and run again with "
            "--resume auto"
        ) from error
    accelerator.wait_for_everyone()


def _force_to_disk(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
