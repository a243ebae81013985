"""A training run's folder: whole checkpoints, logs that end at the last of them, nothing half-written."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_vllm.data.annotated_videos import name_first
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import whole_file, write_whole
from moss_vllm.runtime.locks import Lock
from moss_vllm.runtime.screen import say

if TYPE_CHECKING:  # it takes seconds, and recipes look at their folder before
    from accelerate import Accelerator

PROGRESS_FILE = "progress.json"
SETTINGS_FILE = "settings.json"  # settings, parameters and numbers of the run
FINISHED_FILE = "finished"  # names the last checkpoint once all steps are done, and the test after them
LOCK_FILE = ".lock"
LOGS = ("train.jsonl", "evals.jsonl")


@contextmanager
def hold(out: Path, accelerator: "Accelerator") -> Iterator[None]:
    """Keep other runs out of `out`, however its path is spelled; the system releases it when a run is killed.

    Every process of a run enters it, and the main process holds the lock. A new folder in which nothing was
    written is removed again.

    Raises:
        BlockingIOError: in every process, if another run holds the folder or it cannot be locked.
    """
    from accelerate.utils import broadcast_object_list

    file, refused, is_new = out / LOCK_FILE, "", not out.exists()
    lock = Lock(file)
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not lock.take():
                refused = (
                    f"{out}: another training run writes to it; wait for it to end, or name another --out"
                )
        except OSError as error:
            refused = f"{out}: cannot be locked for this run ({error}); name another --out"
    [refused] = broadcast_object_list([refused])
    if refused:
        raise BlockingIOError(refused)
    try:
        yield
    finally:
        if accelerator.is_main_process:
            lock.drop()
            if is_new:
                with suppress(OSError):
                    out.rmdir()


def gone(out: Path) -> RunStopped:
    """The error of a run whose folder was taken away."""
    return RunStopped(
        f"{out} was removed, moved or replaced while the run wrote to it; nothing more is written. Put it "
        "back and resume with --resume auto, or start anew"
    )


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole `step-NNNNNN` folder of a run; unfinished ones have another name."""
    return max(_checkpoints(out), key=step_of, default=None)


def _checkpoints(out: Path) -> list[Path]:
    return [path for path in out.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]


def step_of(checkpoint: Path) -> int:
    """The step after which a run wrote `step-NNNNNN`."""
    return int(checkpoint.name.removeprefix("step-"))


def refuse_second_run(out: Path, resume: Path | None) -> None:
    """FileExistsError if the folder has checkpoints of another run than the resumed one."""
    own = resume is not None and resume.resolve().parent == out.resolve()
    if (newest := latest_checkpoint(out)) and not own:
        raise FileExistsError(f"{newest} is there already; resume with --resume auto, or name another --out")


def choose_resume(out: Path, resume: str | None, *, dry_run: bool) -> Path | None:
    """The checkpoint that a recipe's `resume` names: "auto" the newest in `out`, a folder, or None.

    Raises: as `open_checkpoint`, and as `refuse_second_run` unless it is a dry run.
    """
    if resume == "auto":
        checkpoint = latest_checkpoint(out)
    else:
        checkpoint = Path(resume) if resume else None
    if checkpoint:
        open_checkpoint(checkpoint)
    if not dry_run:
        refuse_second_run(out, checkpoint)
    return checkpoint


def refuse_other_meaning(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError if a checkpoint's weights fit those of a run, but stand for something else.

    Args:
        was, now: what decides, beside their shapes, what weights mean, by name.
    """
    wrong = [f"{name} was {was.get(name)}, is {now[name]}" for name in now if was.get(name) != now[name]]
    if wrong:
        told = name_first(wrong)
        raise ValueError(f"{folder} was trained otherwise: {told}; set it as it was, or name another --out")


def open_checkpoint(folder: Path) -> dict[str, Any]:
    """The counts of the run when it wrote this checkpoint.

    Raises:
        FileNotFoundError: it is no checkpoint of a run, or has no state.
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
        for name in ("step", "rejected", "seen", "elapsed_s"):
            value = progress.get(name, 0)
            whole = type(value) is int or (name == "elapsed_s" and type(value) is float)
            if not (whole and 0 <= value < 2**53):
                raise ValueError(f"{name} is {value!r}; it must be a number from 0")
        place = progress.get("place", {})
        if not isinstance(place, dict) or (
            place and not {"seed", "clips_a_step", "steps", "sources"} <= place.keys()
        ):
            raise ValueError(f"place is {place!r}; it must hold seed, clips_a_step, steps and sources")
        if not isinstance(place.get("data", {}), dict):
            raise ValueError(f"the place's data is {place['data']!r}; it must hold a digest of each set")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: cannot be used ({error}); resume from an earlier checkpoint") from error
    return progress


def check_place(was: dict[str, Any], now: dict[str, Any], first_step: int, resume: Path | None) -> None:
    """ValueError if a run would resume in another order of rows; other data is only told of."""
    for name, meaning in (
        ("seed", "of the data: --data-seed, or without it --seed"),
        ("clips_a_step", "batch_size x accumulate x processes"),
    ):
        if was[name] != now[name]:
            raise ValueError(
                f"{resume} was trained with {name}={was[name]} ({meaning}), this run has {now[name]}: rows "
                "would be skipped or repeated; set it as it was"
            )
    if first_step > now["steps"]:
        raise ValueError(
            f"{resume} is beyond the last step, {now['steps']}; raise --steps, or name another --out"
        )
    if was["steps"] != now["steps"]:
        say(f"steps was {was['steps']}, is {now['steps']}: the learning rate follows the new schedule now")
    if was["sources"] != now["sources"]:
        change = f"the training set was {was['sources']} (rows, weight), is {now['sources']}"
        say(f"{change}: the order of rows differs from here on")
    for name, digest in now.get("data", {}).items():
        if was.get("data", {}).get(name, digest) != digest:  # earlier versions wrote none
            say(
                f"warning: {resume} is of a run with another {name} (its digest was {was['data'][name]}, is "
                f"{digest}); what was learned, scored and chosen until here is of that one. If it is not "
                "meant, stop this run, and name the earlier data or another --out"
            )


def tidy(out: Path, step: int) -> None:
    """Remove half-written files of a killed run and log lines after `step`; move later checkpoints aside."""
    (out / FINISHED_FILE).unlink(missing_ok=True)
    for folder in out.glob(".*.unfinished"):
        shutil.rmtree(folder)
    for file in out.glob(".*.part*"):
        file.unlink()
    for later in _checkpoints(out):
        if step_of(later) > step:  # of an abandoned branch: --resume auto must not choose it
            aside = out / "abandoned" / f"{later.name}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            later.rename(aside)
            say(f"{later} was written after step {step}, where this run resumes; it is {aside} now")
    for file in (out / name for name in LOGS if (out / name).is_file()):
        kept = [line for line in file.read_text().splitlines(keepends=True) if _is_before(line, step)]
        with whole_file(file) as part:
            part.write_text("".join(kept))


def _is_before(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except ValueError:  # the last line of a run that was killed while it wrote
        return False


def mark_finished(out: Path, step: int) -> None:
    """Say in the folder that nothing of the run remains; the main process calls it after the last test."""
    write_whole(out / FINISHED_FILE, f"step-{step:06d}\n")


def write_checkpoint(
    accelerator: "Accelerator",
    folder: Path,
    *,
    save: Callable[[Path], None],
    save_state: Callable[[Path], None],
    progress: dict[str, Any],
) -> None:
    """Write a checkpoint under a temporary name, force it to disk, and rename it when it is whole.

    Args:
        save: writes the files that reload alone; called by the main process.
        save_state: writes what resuming needs besides; called by every process.
        progress: the run's counts, with `step`.

    Raises:
        RunStopped: the disk is full or fails (the files are removed, earlier checkpoints stay), or the run's
            folder is gone.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
        except FileNotFoundError:
            raise gone(folder.parent) from None
    accelerator.wait_for_everyone()
    try:
        save_state(unfinished / "state")
        if accelerator.is_main_process:
            (unfinished / "state" / PROGRESS_FILE).write_text(json.dumps(progress) + "\n")
            save(unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            put_in_place(unfinished, folder)
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


def drop_old(out: Path, keep: int, resumed: Path | None) -> None:
    """Remove all but the `keep` newest checkpoints, and never the one that the run was resumed from."""
    for old in sorted(_checkpoints(out), key=step_of)[:-keep]:
        if resumed is None or old.resolve() != resumed.resolve():
            doomed = old.with_name(f".{old.name}.old.unfinished")  # after a kill `tidy` removes the rest
            old.rename(doomed)
            shutil.rmtree(doomed)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Force a folder to disk and give it its final name; an earlier folder of that name is replaced."""
    _force_to_disk(unfinished)
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}.old.unfinished"))
    unfinished.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(folder.with_name(f".{folder.name}.old.unfinished"), ignore_errors=True)


def _force_to_disk(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
