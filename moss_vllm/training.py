"""One training loop on Accelerate: exact across processes and accumulation, resumable, plain-spoken.

A step's gradient is that of the mean loss over all answer tokens of the step, however its clips are split
over processes and micro-batches. The order of rows depends on (seed, step) alone: resuming costs no decoding.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter

from moss_vllm.data.chat import IGNORED
from moss_vllm.optim import warmup_cosine


@dataclass(frozen=True)
class Loop:
    """How long, how much at once, how often to save."""

    steps: int
    batch_size: int = 8  # clips a process and micro-batch
    accumulate: int = 1
    warmup_share: float = 0.03
    clip_norm: float = 1.0
    save_every: int = 250
    log_every: int = 10
    workers: int = 2
    seed: int = 0
    max_rejected_share: float = 0.005


@dataclass(frozen=True)
class Rejected:
    """What a dataset returns for a row it cannot use."""

    row_id: str
    reason: str


class RowDataset(Protocol):
    """Rows by index; batches as dicts of tensors plus `row_ids` and `rejected`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def collate(self, rows: list[Any]) -> dict[str, Any]:
        """A batch of what `__getitem__` returned."""
        ...


class AnswerLoss(nn.Module):
    """Sum of the cross entropy over answer tokens; only their logits are ever computed.

    With 150,000 words and 5,000 video tokens a clip, logits of every position would be gigabytes.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Loss of one micro-batch from `data.chat.collate`."""
        base = cast(Any, self.model.get_base_model())  # LoRA layers sit inside it
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        target = labels[:, 1:]
        spoken = target != IGNORED
        logits = base.lm_head(hidden[:, :-1][spoken])
        return F.cross_entropy(logits.float(), target[spoken], reduction="sum")


class StepBatches(Sampler[list[int]]):
    """Row indices of each micro-batch of one process, from `start` on; every epoch is a new permutation.

    Step s covers rows s*G to (s+1)*G of the endless sequence, G = batch_size * processes * accumulate,
    whatever the three are.
    """

    def __init__(self, rows: Sized, loop: Loop, *, rank: int, processes: int, start: int) -> None:
        if not len(rows):
            raise ValueError("the training set has no rows; check the annotation file and the rejected list")
        self.count, self.loop, self.rank, self.processes, self.start = len(rows), loop, rank, processes, start

    def __iter__(self) -> Iterator[list[int]]:
        size, epoch, order = self.loop.batch_size, -1, np.empty(0, int)
        for step in range(self.start, self.loop.steps):
            for micro in range(self.loop.accumulate):
                first = ((step * self.loop.accumulate + micro) * self.processes + self.rank) * size
                batch = []
                for position in range(first, first + size):
                    if position // self.count != epoch:
                        epoch = position // self.count
                        order = np.random.default_rng([self.loop.seed, epoch]).permutation(self.count)
                    batch.append(int(order[position % self.count]))
                yield batch

    def __len__(self) -> int:
        return (self.loop.steps - self.start) * self.loop.accumulate


def train(
    accelerator: Accelerator,
    model: PeftModel,
    groups: Sequence[dict[str, Any]],
    dataset: RowDataset,
    loop: Loop,
    *,
    out: Path,
    save: Callable[[Path, PeftModel, int], None],
    restore: Callable[[Path, PeftModel], None],
    resume: Path | None = None,
) -> list[dict[str, Any]]:
    """Run `loop.steps` optimizer steps; checkpoints go to `out/step-NNNNNN`, logs to `out`.

    Args:
        accelerator: built with `gradient_accumulation_steps=loop.accumulate`.
        model: with what trains marked (`optim.parameter_groups`).
        groups: optimizer groups with `name` and `initial_lr`.
        dataset: may return `Rejected` for a row; more than `loop.max_rejected_share` of them stop the run.
        out: written by the main process.
        save: writes a checkpoint folder that reloads alone.
        restore: loads the weights of such a folder into the model.
        resume: a checkpoint of this run to go on from.

    Returns: the logged lines.

    Raises:
        FileNotFoundError: `resume` is no checkpoint.
        RuntimeError: too many rejected rows, a loss that is not finite (its rows are named), or a trained
            parameter that the first backward pass does not reach.
    """
    if (found := accelerator.gradient_accumulation_steps) != loop.accumulate:
        raise ValueError(
            f"the accelerator accumulates {found} micro-batches and the loop {loop.accumulate}; build it "
            f"with Accelerator(gradient_accumulation_steps={loop.accumulate})"
        )
    if resume and not (re.fullmatch(r"step-\d+", resume.name) and (resume / "state").is_dir()):
        raise FileNotFoundError(
            f"{resume}: no step-NNNNNN folder with a state; resume from a checkpoint of this run"
        )
    first_step = int(resume.name.removeprefix("step-")) if resume else 0
    names = [group["name"] for group in groups]
    base_rates = [group["initial_lr"] for group in groups]
    optimizer = torch.optim.AdamW(list(groups), betas=(0.9, 0.999))
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    objective, optimizer = accelerator.prepare(AnswerLoss(model), optimizer)
    _save_weights_ourselves(accelerator)
    if resume:
        restore(resume, model)
        accelerator.load_state(str(resume / "state"))
    batches = StepBatches(
        dataset, loop, rank=accelerator.process_index, processes=accelerator.num_processes, start=first_step
    )
    loader = DataLoader(
        cast(Dataset[Any], dataset),
        batch_sampler=batches,
        num_workers=loop.workers,
        collate_fn=dataset.collate,
        pin_memory=accelerator.device.type == "cuda",
        # The loader draws a seed for its workers; its own generator keeps that out of the run's RNG state.
        generator=torch.Generator().manual_seed(loop.seed),
    )
    source = iter(loader)
    lines: list[dict[str, Any]] = []
    rejected_rows, seen_rows = 0, 0
    objective.train()
    with _Reporter(accelerator, loop, out, first_step) as reporter:
        for step in range(first_step, loop.steps):
            started = time.monotonic()
            micro_batches = [next(source) for _ in range(loop.accumulate)]
            waited_s = time.monotonic() - started
            row_ids = [row for batch in micro_batches for row in batch.pop("row_ids")]
            refused = [row for batch in micro_batches for row in batch.pop("rejected")]
            reporter.rejected(refused)
            tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in micro_batches)
            counts = torch.tensor(
                [tokens, len(refused), len(row_ids) + len(refused)], device=accelerator.device
            )
            tokens, new_rejected, new_rows = cast(Tensor, accelerator.reduce(counts, "sum")).tolist()
            rejected_rows, seen_rows = rejected_rows + new_rejected, seen_rows + new_rows
            # Of the whole set: else one bad row among the first 200 would stop a run that allows 0.5 %.
            rows = max(seen_rows, len(dataset))
            if rejected_rows > loop.max_rejected_share * rows:
                raise RuntimeError(
                    f"{rejected_rows} of {seen_rows} rows so far could not be used, more than "
                    f"{loop.max_rejected_share:.1%} of {rows}; see {out}/rejected-*.jsonl and mend the rows, "
                    "or raise max_rejected_share"
                )
            factor = warmup_cosine(
                step, total=loop.steps, warmup=max(1, round(loop.warmup_share * loop.steps))
            )
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            total = torch.zeros((), device=accelerator.device)
            for batch in micro_batches:
                batch = {key: value.to(accelerator.device) for key, value in batch.items()}
                with accelerator.accumulate(objective):
                    loss = objective(**batch)
                    # Gradients are averaged over processes and micro-batches; this makes it one over tokens.
                    accelerator.backward(
                        loss * (accelerator.num_processes * loop.accumulate / max(1, tokens))
                    )
                    total += loss.detach()
                    if accelerator.sync_gradients:
                        if step == first_step:
                            _check_every_gradient(trained)
                        norm = accelerator.clip_grad_norm_(objective.parameters(), loop.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
            mean_loss = float(cast(Tensor, accelerator.reduce(total, "sum"))) / max(1, tokens)
            if not np.isfinite(mean_loss):
                raise RuntimeError(
                    f"the loss of step {step + 1} is {mean_loss}; rows of this process's batch: "
                    f"{', '.join(row_ids)}; look at them, lower the learning rates, or use a checkpoint"
                )
            line = {
                "step": step + 1,
                "loss": mean_loss,
                "grad_norm": float(norm) if norm is not None else None,
                "lr": {n: r * factor for n, r in zip(names, base_rates, strict=True)},
                "clips": new_rows - new_rejected,
                "seconds": time.monotonic() - started,
                "waited_s": waited_s,
            }
            lines.append(line)
            reporter.step(line)
            if (step + 1) % loop.save_every == 0 or step + 1 == loop.steps:
                _checkpoint(accelerator, model, out / f"step-{step + 1:06d}", save, step + 1)
    return lines


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole `step-NNNNNN` folder of a run; unfinished ones have another name."""
    found = [path for path in out.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def _checkpoint(
    accelerator: Accelerator,
    model: PeftModel,
    folder: Path,
    save: Callable[[Path, PeftModel, int], None],
    step: int,
) -> None:
    """Everything under a temporary name, renamed when whole."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished / "state"))
    if accelerator.is_main_process:
        save(unfinished, model, step)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


def _save_weights_ourselves(accelerator: Accelerator) -> None:
    """Keep accelerate from writing the frozen base model into every checkpoint."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())


def _check_every_gradient(trained: Sequence[tuple[str, nn.Parameter]]) -> None:
    unreached = [name for name, parameter in trained if parameter.grad is None]
    if unreached:
        raise RuntimeError(
            f"{len(unreached)} trained parameters get no gradient, e.g. {', '.join(unreached[:5])}; freeze "
            "them in the learning-rate table or give clips of more than one frame"
        )


class _Reporter:
    """Progress bar, train.jsonl, TensorBoard, and the list of rejected rows."""

    def __init__(self, accelerator: Accelerator, loop: Loop, out: Path, first_step: int) -> None:
        self.loop, self.out, self.rank = loop, out, accelerator.process_index
        self.main = accelerator.is_main_process
        console = Console(stderr=True, quiet=not self.main)
        shown = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")]
        self.progress = Progress(
            *shown, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()
        )
        self.task = self.progress.add_task("", total=loop.steps, completed=first_step, now="")
        self.recent: list[dict[str, Any]] = []
        self.named: set[str] = set()
        out.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "_Reporter":
        self.progress.start()
        if self.main:
            self.log = (self.out / "train.jsonl").open("a")
            self.board = SummaryWriter(str(self.out / "tensorboard"))
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        if self.main:
            self.log.close()
            self.board.close()

    def step(self, line: dict[str, Any]) -> None:
        """Account for one step; print and log every `log_every`."""
        self.recent = [*self.recent, line][-max(20, self.loop.log_every) :]
        seconds = sum(one["seconds"] for one in self.recent)
        clips_per_s = sum(one["clips"] for one in self.recent) / seconds
        waiting = sum(one["waited_s"] for one in self.recent) / seconds
        rates = " ".join(f"{name} {rate:.1e}" for name, rate in line["lr"].items())
        now = f"loss {line['loss']:.3f}  {clips_per_s:.1f} clips/s  waiting {waiting:.0%}  lr {rates}"
        self.progress.update(self.task, completed=line["step"], now=now)
        if not self.main:
            return
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        self.board.add_scalar("loss", line["loss"], line["step"])
        self.board.add_scalar("clips_per_s", clips_per_s, line["step"])
        for name, rate in line["lr"].items():
            self.board.add_scalar(f"lr/{name}", rate, line["step"])
        if line["step"] % self.loop.log_every == 0 and self.progress.disable:
            left_s = (self.loop.steps - line["step"]) * seconds / len(self.recent)
            print(f"step {line['step']}/{self.loop.steps}  {now}  {left_s / 60:.1f} min left", flush=True)

    def rejected(self, rows: Sequence[Rejected]) -> None:
        """Name each row that cannot be used once, on the screen and in rejected-<process>.jsonl."""
        for row in rows:
            if row.row_id in self.named:
                continue
            self.named.add(row.row_id)
            print(f"row {row.row_id} not used: {row.reason}", file=sys.stderr, flush=True)
            with (self.out / f"rejected-{self.rank}.jsonl").open("a") as file:
                file.write(json.dumps({"row_id": row.row_id, "reason": row.reason}) + "\n")
