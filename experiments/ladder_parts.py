"""A ladder's training step taken apart, and what the paper's models keep; `benchmark_action.py` prints it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    raise SystemExit("experiments/ladder_parts.py is a part of benchmark_action.py, not a command")

import torch
from efficiency import FRAMES, IMAGE_SIZE, build_model
from kept_for_backward import KeptForBackward
from measuring import MIB, Meter, clear, spread
from paper_tables import TABLES
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.core import ladder, lean, lean_ladder
from moss_vllm.recognition.hosts.ladder import LadderClassifier
from moss_vllm.runtime.screen import Screen

ENCODER, TAPS, OTHER, TRAINED = "image encoder", "tapped tokens", "other", "all but the encoder"
# Functions of a block, looked up in their module at each call: a hook on a layer would change what they do.
FUNCTIONS = {
    "norm_linear": "adapters",
    "norm_time_conv": "convolutions in time",
    "norm_attention": "attention",
    "norm_mlp": "MLPs",
}
PARTS = (ENCODER, TAPS, "tokeniser", *FUNCTIONS.values(), "temporal module", OTHER)


@contextmanager
def layers_called(model: Any) -> Iterator[None]:
    """Every lean function calls the layers it is given, as it does with hooked ones."""
    with ExitStack() as undo:
        for module in (lean, lean_ladder):
            undo.enter_context(patch.object(module, "unwrapped", lambda *_: False))
        yield


@contextmanager
def blocks_again(model: Any) -> Iterator[None]:
    """`--checkpoint-blocks`."""
    model.set_checkpoint_blocks(True)
    try:
        yield
    finally:
        model.set_checkpoint_blocks(False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "ours": nullcontext,
    "blocks computed again": blocks_again,
    "layers called": layers_called,
}


class LadderParts:
    """Seconds of each of `PARTS` of the steps inside `with`, and the part that runs now.

    In backward, hooks on gradients tell the parts: the gradient of a part's output begins it, that of its
    input ends it. What is between parts is "other": residuals, positions, the head and the loss.
    """

    def __init__(self, model: LadderClassifier, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.part = OTHER
        self._model, self._clock, self._undo = model, clock, ExitStack()

    def __enter__(self) -> "LadderParts":
        host = self._model.ladder
        modules: list[tuple[str, Any]] = [(ENCODER, self._model.encoder), ("tokeniser", host.stem)]
        modules += [("temporal module", host.get_submodule(name)) for name in host.temporal_names.values()]
        marked = [(part, module, "forward") for part, module in modules]
        for part, owner, name in marked + [(part, ladder, name) for name, part in FUNCTIONS.items()]:
            self._undo.enter_context(patch.object(owner, name, self._mark(part, getattr(owner, name))))
        self._since = self._clock()
        return self

    def __exit__(self, *error: object) -> None:
        self.enter(OTHER)
        self._undo.close()

    def enter(self, part: str) -> None:
        """What follows is `part`'s."""
        now = self._clock()
        self.seconds[self.part] += now - self._since
        self.part, self._since = part, now

    def _mark(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            for x in args:
                if isinstance(x, Tensor) and x.requires_grad:
                    x.register_hook(lambda grad: self.enter(OTHER))
            self.enter(part)
            output = function(*args)
            self.enter(OTHER)
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda grad: self.enter(part))
            return output

        return run


class KeptByPart(KeptForBackward):
    """As `KeptForBackward`, and in `mib` by part; the tokens that the encoder hands over are one."""

    def __init__(self, model: LadderClassifier, video: Tensor, parts: LadderParts) -> None:
        super().__init__(model, [video])
        self.mib: dict[str, float] = defaultdict(float)
        self._parts, self._taps = parts, set[int]()
        self._hook = model.encoder.register_forward_hook(self._remember)

    def _remember(self, encoder: nn.Module, frames: Any, taps: Sequence[Tensor]) -> None:
        self._taps |= {tap.untyped_storage()._cdata for tap in taps}

    def _pack(self, tensor: Tensor) -> Tensor:
        before = self.total_bytes()
        super()._pack(tensor)
        part = TAPS if tensor.untyped_storage()._cdata in self._taps else self._parts.part
        self.mib[part] += (self.total_bytes() - before) / MIB
        return tensor

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()


def measure_parts(
    step: nn.Module, video: Tensor, meter: Meter, repeats: int, tolerance: float
) -> dict[str, Any]:
    """MiB kept and milliseconds by part in each of `WAYS`, in turns, after comparing their losses."""
    model: Any = step.model
    found: dict[str, Any] = {}
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for way, context in WAYS.items():  # which also warms up
        with context(model), LadderParts(model, meter.now) as parts, KeptByPart(model, video, parts) as kept:
            loss = step(video)
        total = kept.total_bytes() / MIB
        sums = {TRAINED: total - kept.mib[ENCODER], "all": total}
        found[way] = {"loss": loss.item(), "kept_mib": {**kept.mib, **sums}}
        loss.backward()
        clear(step, video)
    losses = [one["loss"] for one in found.values()]
    if not max(losses) - min(losses) < tolerance:
        raise SystemExit(f"the ways {', '.join(WAYS)} have different losses: {losses}")
    for _ in range(repeats):
        for way, context in WAYS.items():
            with context(model), LadderParts(model, meter.now) as parts:
                step(video).backward()
            ms = [1e3 * parts.seconds[part] for part in PARTS]
            times[way].append([*ms, sum(ms[1:]), sum(ms)])  # the encoder is the first
            clear(step, video)
    for way, rows in times.items():
        columns = zip((*PARTS, TRAINED, "all"), zip(*rows, strict=True), strict=True)
        found[way]["ms"] = {part: spread(column) for part, column in columns}
    return {"ways": found, "ratio": {way: _ratio(found[way], found["layers called"]) for way in WAYS}}


def _ratio(one: dict[str, Any], layers: dict[str, Any]) -> dict[str, float]:
    """Of a way's memory and time to those with every layer called."""
    ratio = {"kept_mib": one["kept_mib"]["all"] / layers["kept_mib"]["all"]}
    return ratio | {f"ms, {n}": one["ms"][n]["median"] / layers["ms"][n]["median"] for n in (TRAINED, "all")}


def print_parts(console: Screen, title: str, found: dict[str, Any]) -> None:
    """A row for each part, and the sums."""
    heads = [f"{what}, {way}" for what in ("kept, MiB", "ms") for way in WAYS]
    table = Table("part", *heads, title=f"parts of {title}; median")
    ways = list(found["ways"].values())
    for part in ways[0]["ms"]:
        kept = [f"{way['kept_mib'].get(part, 0):,.1f}" for way in ways]
        table.add_row(part, *kept, *(f"{way['ms'][part]['median']:,.0f}" for way in ways))
    console.print(table)
    for way, ratio in list(found["ratio"].items())[:-1]:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
        console.print(f"{way} / layers called: {shown}")


# ---- the paper's memory


def measure_memory(batch: int) -> dict[str, Any]:
    """GB kept by steps of the models of Tables 3 and 10d, whose tensors have no data, beside the paper's."""
    rows = []
    for table in ("3", "10d"):
        for row in TABLES[table]:
            with torch.device("meta"):
                model = build_model(row.host, row.preset, row.options)
            kept = {}
            with FakeTensorMode(allow_non_fake_inputs=True):  # as in efficiency.py
                model.to_empty(device="cpu").train()
                frames = FRAMES * model.frames_per_encoded
                video = torch.empty(batch, frames, 3, IMAGE_SIZE, IMAGE_SIZE)
                for way, context in WAYS.items():
                    with context(model), KeptForBackward(model, [video]) as counter:
                        model(video)
                    kept[way] = counter.total_bytes() / 1e9
            paper = float(row.paper["Mem"]) * batch / row.batch
            rows.append({"table": table, "name": row.name, "kept": kept, "paper": paper})
    return {"batch": batch, "unit": "GB", "rows": rows}


def print_memory(console: Screen, found: dict[str, Any]) -> None:
    """A row for each model."""
    title = f"kept for backward by {found['batch']} clips in float32, GB; the paper's of as many clips"
    table = Table("Table", "model", *WAYS, "ratio", "paper", title=title)
    for row in found["rows"]:
        kept = list(row["kept"].values())
        cells = [f"{number:.2f}" for number in (*kept, kept[0] / kept[-1], row["paper"])]
        table.add_row(row["table"], row["name"], *cells)
    console.print(table)
