"""Stages of `experiments/make_miniature.py`: what each draws, trains and saves; each has its own process."""

import argparse
import json
import os
import queue
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/miniature_stages.py is a part of make_miniature.py, not a command")

import numpy as np
import torch
from miniature_families import FAMILIES, Family
from miniature_sights import Conversations, Matches, Pictures, Sights
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training.optim import warmup_cosine
from moss_vllm.vlm.conversation import IGNORED

STAGES = ("seeing", "reading", "talking", "matching")  # the place is part of a stage's seed
LOGIT_SCALE = 8.0  # of seeing: then a token comes out near the sum of its words' embeddings, not far beyond
NOISE = 0.05  # of described tokens; embeddings have a standard deviation of 0.1
LOG_EVERY = 20
LOG = "pretraining.jsonl"
STATE = "unfinished"


@dataclass(frozen=True)
class Stage:
    """A stage of the pre-training: what it draws, what it trains and its loss."""

    name: str
    model: PreTrainedModel
    processor: Any
    args: argparse.Namespace

    @property
    def family(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.args.family]

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        steps: int = getattr(self.args, self.name)
        return steps

    @property
    def state(self) -> Path:
        """The file of its unfinished work."""
        return self.args.out / STATE / f"{self.name}.safetensors"

    def batches(self, first: int) -> Iterator[Any]:
        """Batches from number `first` on."""
        make: Callable[[np.random.Generator], Any]
        if self.name == "seeing":
            make = Pictures(self.family, self.processor)
        elif self.name == "matching":
            make = Matches(self.family, FAMILIES["video_llama_3"], self.processor)
        else:
            make = Conversations(self.family, self.processor, described=self.name == "reading")
        sights = Sights(make, (self.args.seed, STAGES.index(self.name)), first)
        return iter(DataLoader(sights, batch_size=None, num_workers=1, prefetch_factor=4))

    def trained(self) -> dict[str, nn.Parameter]:
        """Its parameters. Embeddings are learned last, because seeing learns to point to them."""
        parts = self.family.trains[self.name]
        return {name: value for name, value in self.model.named_parameters() if name.startswith(parts)}

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        losses = {"seeing": self._seen, "matching": self._matched}
        return losses[self.name](*batch) if self.name in losses else self._answered(batch)

    def _seen(self, shown: dict[str, Tensor], words: Tensor) -> Tensor:
        """Each token points to the embeddings of the words for its content."""
        embeddings = self.model.get_input_embeddings().weight.detach()
        tokens = self.family.see(self.model, **shown)
        return -(words * F.log_softmax(LOGIT_SCALE * tokens @ embeddings.T, dim=-1)).sum(-1).mean()

    def _matched(self, shown: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """The share of the tokens' variance that is missed."""
        missed = (self.family.see(self.model, **shown) - tokens).square().sum()
        return missed / (tokens - tokens.mean(0)).square().sum()

    def _answered(self, batch: dict[str, Tensor]) -> Tensor:
        """Every answer has equal weight: a short one would count little among the words of captions."""
        core, words = self.model.model, batch.pop("words", None)
        labels = batch.pop("labels")[:, 1:]
        if words is None:
            hidden = core(**self.family.place(self.model, batch)).last_hidden_state
        else:
            table = self.model.get_input_embeddings().weight.detach()
            ids, tokens = batch["input_ids"], words @ table
            embeds = table[ids]
            embeds[ids == self.model.config.video_token_id] = tokens + NOISE * torch.randn_like(tokens)
            hidden = core.language_model(inputs_embeds=embeds).last_hidden_state
        answered = labels != IGNORED
        each = F.cross_entropy(
            self.model.lm_head(hidden[:, :-1][answered]), labels[answered], reduction="none"
        )
        weights = answer_weights(labels)[answered]
        return (each * weights).sum() / weights.sum()


def answer_weights(labels: Tensor) -> Tensor:
    """1 / length of the answer at each of its tokens, 0 elsewhere.

    Shape:
        (B, S) -> (B, S).
    """
    answered = labels != IGNORED
    starts = answered & ~F.pad(answered, (1, 0))[:, :-1]
    answer = starts.long().cumsum(-1) * answered
    lengths = torch.zeros(len(labels), int(answer.max()) + 1).scatter_add_(1, answer, answered.float())
    return answered / lengths.gather(1, answer).clamp_min(1)


def run_stages(stages: Sequence[Stage], out: Path) -> None:
    """Train side by side, each in a process with its share of torch's threads; show and note progress."""
    context = get_context("spawn")
    reports: Any = context.Queue()
    threads = max(1, torch.get_num_threads() // len(stages))
    processes = {
        s.name: context.Process(target=train, args=(s, threads, reports), daemon=False) for s in stages
    }
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[loss]}"), TimeRemainingColumn()]
    console = Screen(stderr=True)
    with ExitStack() as stack:
        log = stack.enter_context((out / LOG).open("a"))
        bars = stack.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        tasks = {s.name: bars.add_task(s.name, total=s.steps, loss="") for s in stages}
        for process in processes.values():
            process.start()
            stack.callback(process.terminate)
        while any(process.is_alive() for process in processes.values()) or not reports.empty():
            try:
                line = reports.get(timeout=1)
            except queue.Empty:
                continue
            log.write(json.dumps(line) + "\n")
            log.flush()
            bars.update(tasks[line["stage"]], completed=line["step"], loss=f"loss {line['loss']:.3f}")
            if not console.is_terminal:
                total = getattr(stages[0].args, line["stage"])
                left = line["minutes_left"]
                say(
                    f"{line['stage']} {line['step']:,} of {total:,}, loss {line['loss']:.3f}, "
                    f"about {left:.1f} min left",
                    flush=True,
                )
        if failed := [name for name, process in processes.items() if process.exitcode]:
            raise SystemExit(
                f"{' and '.join(failed)} failed; the message is above. Run again to go on from here"
            )


def train(stage: Stage, threads: int, reports: Any) -> None:
    """AdamW on vectors and embeddings, Muon on the other matrices; linear warm-up, cosine to zero."""
    torch.set_num_threads(threads)
    trained = stage.trained()
    matrices = {n: p for n, p in trained.items() if p.dim() == 2 and re.search(r"\.(layers|blocks)\.", n)}
    others = {n: p for n, p in trained.items() if n not in matrices}
    lr = stage.family.lr
    adam = torch.optim.AdamW(others.values(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    muon = torch.optim.Muon(matrices.values(), lr=10 * lr, weight_decay=0.05)
    pairs = ((adam, others), (muon, matrices))
    rates = [(group, group["lr"]) for optimizer, _ in pairs for group in optimizer.param_groups]
    first, spent_s = restore(stage.state, trained, pairs)
    for name, parameter in stage.model.named_parameters():
        parameter.requires_grad_(name in trained)
    batches, started, mean, parent = stage.batches(first), time.monotonic(), 0.0, os.getppid()
    for step in range(first, stage.steps):
        torch.manual_seed(stage.args.seed + step)  # of the noise
        factor = warmup_cosine(step, total=stage.steps, warmup=max(1, stage.steps // 20))
        for group, rate in rates:
            group["lr"] = rate * factor
        value = stage.loss(next(batches))
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for optimizer, _ in pairs:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        mean = value.item() if step == first else 0.95 * mean + 0.05 * value.item()
        minutes = (spent_s + time.monotonic() - started) / 60
        if done % stage.args.save_every == 0 or done == stage.steps:
            save(stage.state, trained, pairs, done, 60 * minutes)
        if done % LOG_EVERY == 0 or done == stage.steps:
            left = (time.monotonic() - started) / 60 / (done - first) * (stage.steps - done)
            line = {"stage": stage.name, "step": done, "loss": mean, "minutes": minutes}
            reports.put({**line, "minutes_left": left})
            if os.getppid() != parent:  # the command was killed
                raise SystemExit(1)


Pairs = Sequence[tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]]


def save(file: Path, trained: dict[str, nn.Parameter], pairs: Pairs, step: int, spent_s: float) -> None:
    """Write weights, the optimizers' states, the step and the seconds spent, whole."""
    content = {name: value.detach() for name, value in trained.items()}
    for optimizer, named in pairs:
        for name, parameter in named.items():
            for key, value in optimizer.state[parameter].items():
                content[f"{name}/{key}"] = (
                    value.detach() if isinstance(value, Tensor) else torch.tensor(value)
                )
    content |= {"/step": torch.tensor(step), "/seconds": torch.tensor(spent_s)}
    unfinished = file.with_suffix(".new")
    save_file({name: value.contiguous().clone() for name, value in content.items()}, unfinished)
    unfinished.replace(file)


def restore(file: Path, trained: dict[str, nn.Parameter], pairs: Pairs) -> tuple[int, float]:
    """Load what `save` wrote, if it did; returns the next step and the seconds spent."""
    if not file.is_file():
        return 0, 0.0
    content = load_file(file)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(content[name])
    for optimizer, named in pairs:
        for name, parameter in named.items():
            start = f"{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(start): value for key, value in content.items() if key.startswith(start)
            }
    return int(content["/step"]), float(content["/seconds"])
