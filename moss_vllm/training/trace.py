"""A trace of a few training steps by torch's profiler: what ran when, on the processor and the GPU."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.quiet import quiet_profiler
from moss_vllm.runtime.screen import say

PROFILE_FOLDER = "profile"  # in the run's
WARM_UP = 3  # steps before the traced ones: the first ones allocate, and choose kernels


class StepTrace:
    """Traces steps within a `with`, and writes OUT/profile/steps-A-to-B.json.gz after the last of them.

    Ranges have the names "step N" and, for every module with submodules, its class and its name in the
    objective: "MOSS model.vision_model.moss". torch itself names operators, the backward pass and the
    optimizer's step. Without steps to trace, nothing is hooked.

    Args:
        out: the run's folder.
        objective: whose modules are named; not wrapped for an engine.
        first: the number of steps that are done when training starts.
        count: steps to trace after `WARM_UP` more; None or 0: none.
    """

    def __init__(self, out: Path, objective: nn.Module, first: int, count: int | None) -> None:
        self.out, self.objective = out, objective
        self.steps = range(first + WARM_UP, first + WARM_UP + (count or 0))
        self.profiler: profile | None = None
        self.done, self.open, self.hooks = 0, list[Any](), list[Any]()

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *error: object) -> None:
        missed = self.steps and self.profiler is None and error[0] is None
        step = self.steps.start + 1
        self._write()  # of a run that ended before the last of these steps
        if missed:
            say(f"profile_steps: nothing was traced; the run ended before step {step}, the first to trace")

    def begin(self, step: int) -> None:
        """Step number `step`, counted from 0, begins."""
        if step not in self.steps:
            return
        if self.profiler is None:
            quiet_profiler()
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            for name, module in self.objective.named_modules():
                if any(module.children()):
                    self._hook(module, f"{type(module).__name__} {name}".rstrip())
            self.profiler = profile(activities=activities, acc_events=True)
            self.profiler.start()
        self._enter(f"step {step + 1}")

    def end(self, step: int) -> None:
        """The step is done."""
        if self.profiler is None:
            return
        self._leave()
        self.done += 1
        if step + 1 not in self.steps:
            self._write()

    def _hook(self, module: nn.Module, name: str) -> None:
        self.hooks += [
            module.register_forward_pre_hook(lambda *_: self._enter(name)),
            # Activation checkpointing leaves a second forward pass by an exception.
            module.register_forward_hook(lambda *_: self._leave(), always_call=True),
        ]

    def _enter(self, name: str) -> None:
        self.open.append(record_function(name))
        self.open[-1].__enter__()

    def _leave(self) -> None:
        self.open.pop().__exit__(None, None, None)

    def _write(self) -> None:
        for hook in self.hooks:
            hook.remove()
        while self.open:  # of a step that an error ended
            self._leave()
        profiler, self.profiler, self.hooks = self.profiler, None, []
        self.steps, first = range(0), self.steps.start + 1
        if profiler is None:
            return
        profiler.stop()
        if not self.out.is_dir():  # taken away: it is not made anew
            return
        file = self.out / PROFILE_FOLDER / f"steps-{first:06d}-to-{first + max(self.done, 1) - 1:06d}.json.gz"
        with whole_file(file) as part:
            profiler.export_chrome_trace(str(part))
        say(
            f"{file}: a trace of {self.done} step{'s' * (self.done != 1)} by torch's profiler; open it in a "
            "browser at https://ui.perfetto.dev (Open trace file), or in Chrome at chrome://tracing",
            flush=True,
        )
