"""How a training run starts: accelerator, folder, data seed, what it shows, settings.json, disk, tracker."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.table import Column, Table
from torch import Tensor, nn

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import read_json, whole_file
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.spelling import program
from moss_vllm.runtime.versions import tell_changes, versions
from moss_vllm.training import engines
from moss_vllm.training.loop import Loop
from moss_vllm.training.optim import Rate, describe
from moss_vllm.training.run_folder import SETTINGS_FILE, hold, step_of

TRACKERS = ("tensorboard", "wandb", "trackio")


@contextmanager
def open_run(settings: Any, *, dry_run: bool) -> Iterator[Accelerator]:
    """The accelerator of a run, with the run's folder kept from others; a dry run needs neither.

    Args:
        settings: a recipe's dataclass; `tracker`, `precision` and `out` are read.

    Raises: as `choose_tracker`, `engines.start` and `run_folder.hold`.
    """
    tracker = choose_tracker(settings.tracker)
    accelerator = engines.start(
        tracker=None if dry_run else tracker, folder=settings.out, precision=settings.precision
    )
    with nullcontext() if dry_run else hold(Path(settings.out), accelerator):
        yield accelerator


def command_line(recipe: str, argv: Sequence[str] | None) -> str:
    """The command of this run; None are the arguments of this process."""
    return shlex.join([*program(), *sys.argv[1:]] if argv is None else [recipe, *argv])


def data_seed(settings: Any) -> int:
    """The seed of all that is drawn of the data: `data_seed`, or where that is None `seed`."""
    return int(settings.seed if settings.data_seed is None else settings.data_seed)


def describe_training(
    settings: Any, accelerator: Accelerator, model: nn.Module, table: Sequence[Rate], command: str
) -> dict[str, Any]:
    """The part of a run's record that all recipes share, as json.

    Args:
        settings: the recipe's dataclass.
        table: of learning rates, as given to `optim.parameter_groups`.
        command: from `command_line`.
    """
    return {
        "settings": dataclasses.asdict(settings),
        "data_seed": data_seed(settings),
        "engine": engines.name(accelerator),
        "processes": accelerator.num_processes,
        "parameters": describe(model, table),
        "command": command,
        "versions": versions(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def announce(
    accelerator: Accelerator, settings: Any, record: dict[str, Any], out: Path, resume: Path | None
) -> None:
    """Write settings.json, open the tracker, say what is resumed; every process must call it.

    Args:
        record: of the main process; the others' is not read.
    """
    if accelerator.is_main_process:
        write(record, out, resume)
        if resume:
            is_last = step_of(resume) == settings.steps
            say(f"resumed from {resume}{', the last step: nothing remains to be trained' * is_last}")
            if changes := tell_changes(read_json(resume / RUN_FILE).get("versions", {}), record["versions"]):
                say(f"it was trained with other versions, so frames and numbers may differ: {changes}")
    open_tracker(accelerator, settings, resume)


def show_parameters(console: Screen, parameters: Sequence[Sequence[Any]]) -> None:
    """Print what `optim.describe` returns for a model."""
    pattern = Column("pattern", overflow="fold")  # whole, on a narrow terminal too
    rows = Table("group", pattern, "tensors", "parameters", "learning rate", title="what trains")
    for name, regex, tensors, count, rate in parameters:
        rows.add_row(name, regex, str(tensors), f"{count:,}", rate)
    console.print(rows)


def plan_disk(
    model: nn.Module, out: Path, loop: Loop, resume: Path | None, *, copies: int = 3
) -> dict[str, int]:
    """Bytes of a checkpoint, the number of checkpoints, and bytes free.

    Args:
        copies: float32 numbers per trained one: it, and Adam's two states of it.
    """
    first = step_of(resume) if resume else 0
    count = math.ceil((loop.steps - first) / loop.save_every)
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return {
        "checkpoint": 4 * copies * sum(p.numel() for p in model.parameters() if p.requires_grad),
        # While the newest is written there is one more.
        "checkpoints": count if loop.keep is None else min(count, loop.keep + 1),
        "free": shutil.disk_usage(nearest).free,
    }


def show_settings_and_batch(
    record: Mapping[str, Any], dataset: Any, sizes: Mapping[str, Any] | None = None
) -> None:
    """Print what a dry run shows more: every setting, and the shapes of a batch of a `RowDataset`.

    Args:
        record: the run's.
        sizes: what stands in place of settings, or beside them.
    """
    settings = {**record["settings"], "data_seed": record["data_seed"], **(sizes or {})}
    say(*(f"{name}: {value}" for name, value in settings.items()), sep="\n")
    for name, value in dataset.collate([dataset[index] for index in range(min(2, len(dataset)))]).items():
        say(f"{name}: {tuple(value.shape) if isinstance(value, Tensor) else value}")


def show_disk(disk: dict[str, int]) -> None:
    """Print the space that checkpoints take, and warn where that is more than is free."""
    size, count, free = disk["checkpoint"], disk["checkpoints"], disk["free"]
    needed = f"{count} checkpoint{'s' * (count != 1)} of {_gib(size)} GiB: {_gib(count * size)} GiB of disk"
    say(f"{needed}, {free / 2**30:.1f} GiB are free")
    if count * size > free:
        say("warning: the disk does not hold them all; use --keep N or a larger --save-every, or make room")


def refuse_full_disk(disk: dict[str, int], out: Path) -> None:
    """RunStopped where not even one checkpoint can be written."""
    if disk["checkpoint"] > disk["free"] and disk["checkpoints"]:
        raise RunStopped(
            f"{out}: a checkpoint takes {_gib(disk['checkpoint'])} GiB and {_gib(disk['free'])} GiB are "
            "free; make room, or name another --out"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"


def write(record: dict[str, Any], out: Path, resume: Path | None) -> None:
    """Write settings.json; a resumed run keeps the time of its first start and adds to `resumed_at`."""
    file, record = out / SETTINGS_FILE, {**record, "resumed_at": []}
    if resume:
        before = read_json(file, "remove it") if file.is_file() else {}
        record["started"] = before.get("started", record["started"])
        record["resumed_at"] = [*before.get("resumed_at", []), step_of(resume)]
    with whole_file(file) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")


def choose_tracker(name: str) -> str | None:
    """The tracker's name for accelerate, which silently drops a tracker that is not installed.

    Raises:
        ValueError: an unknown name.
        ImportError: its package is missing.
    """
    if name == "none":
        return None
    if name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}; it must be one of {', '.join(TRACKERS)} or none")
    if importlib.util.find_spec(name) is None:
        raise ImportError(f'tracker {name!r} is not installed: pip install -e ".[tracking]"')
    return name


def open_tracker(accelerator: Accelerator, settings: Any, resume: Path | None) -> None:
    """Start the tracker; a resumed run continues in the one it had."""
    if settings.tracker == "none":
        return
    out = Path(settings.out).resolve()
    run_id = re.sub(r"\W", "-", out.name) + "-" + hashlib.sha256(str(out).encode()).hexdigest()[:8]
    step = step_of(resume) if resume else None
    options = {
        "tensorboard": {"purge_step": step},
        "wandb": {"id": run_id, "name": out.name, "dir": str(out), "resume": "allow"},
        "trackio": {"name": run_id, "resume": "allow"},
    }
    project = "tensorboard" if settings.tracker == "tensorboard" else "moss_vllm"
    values = {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}
    accelerator.init_trackers(
        project, config=values, init_kwargs={settings.tracker: options[settings.tracker]}
    )
