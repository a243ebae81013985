"""The parts of training steps, and steps of a real shape; `experiments/benchmark_training.py` prints them.

    with StepParts() as parts:
        lines = recipe.main([...])       # or training.train(...)
    steps = parts.join(lines)            # seconds of each of PARTS, a dict a step
    shares(steps)                        # of the whole time

    python experiments/step_parts.py steps.json recipes/favor_lora.py --steps 20   # the same, as a process

The training loop itself runs, unchanged. Waiting and the whole step are the loop's own numbers; "other" is
the time outside all marks: moving the batch to the device, embeddings, the attention mask, the loss. On a GPU
every mark waits for the device, which costs time, so `run_shape` measures speed without marks, then the
parts.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import load_recipe
from torch import Tensor, nn

from moss_vllm.core import MOSS
from moss_vllm.core.encoder import stss_path
from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.runtime.flags import Flags
from moss_vllm.training import engines, run_state
from moss_vllm.training.loop import Loop, train
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.step_memory import GIB
from moss_vllm.vlm.adapter import attach_lora, choose_rates
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.places import base_record
from moss_vllm.vlm.sizes import build_shape
from moss_vllm.vlm.video_llama3.chat import collate
from moss_vllm.vlm.video_llama3.memory import MERGE, TIME_TOKENS, estimate_training_memory

MARKED = ("vision encoder", "MOSS", "projector", "language model", "backward", "optimizer")
PARTS = ("waiting for data", *MARKED, "other")
WARM_UP = 2  # steps not counted, while workers start and buffers are made
MARKED_STEPS = 5
# Height and width of a shape's frames; the paper's short side is 224 (Sec. 4.5), the videos are 16:9.
FRAMES_PX = {"2b": (224, 392), "7b": (224, 392), "miniature": (84, 84)}
SAMPLE_FPS = 2
TEXT_TOKENS, LORA_RANK, LORA_ALPHA = 200, 64, 16  # the last two as in configs/favor_videollama3_2b.yaml
PROTOCOL = {"sample_fps": SAMPLE_FPS, "text_tokens": TEXT_TOKENS, "lora_rank": LORA_RANK}


class StepParts:
    """Collects the seconds of every part of each step inside `with`, in `steps`."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}
        self._undo = ExitStack()
        self._wait_for_device: Callable[[], None] = lambda: None

    def __enter__(self) -> "StepParts":
        # The loop looks these up in their module at each call, so it needs no change.
        marked = [
            (engines, "wrap", self._mark_modules(engines.wrap)),
            (engines, "backward", self._mark("backward", engines.backward)),
            (engines, "step", self._end_step(self._mark("optimizer", engines.step))),
            (run_state, "undisturbed", self._leave_out(run_state.undisturbed)),
        ]
        for module, name, function in marked:
            self._undo.enter_context(patch.object(module, name, function))
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def join(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
        """Seconds of all of `PARTS`, by step; `lines` is what the training loop returned."""
        joined = []
        for line, marked in zip(lines, self.steps, strict=True):
            parts = {"waiting for data": line["waited_s"], **marked}
            joined.append({**parts, "other": line["seconds"] - sum(parts.values())})
        return joined

    def _start(self, part: str) -> None:
        self._wait_for_device()
        self._started[part] = time.perf_counter()

    def _stop(self, part: str) -> None:
        self._wait_for_device()
        self._seconds[part] += time.perf_counter() - self._started.pop(part)

    def _mark(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._start(part)
            result = function(*args, **kwargs)
            self._stop(part)
            return result

        return run

    def _mark_modules(self, wrap: Callable[..., Any]) -> Callable[..., Any]:
        def run(accelerator: Any, objective: Any, *args: Any, **kwargs: Any) -> Any:
            if accelerator.device.type == "cuda":
                self._wait_for_device = torch.cuda.synchronize
            for part, modules in modules_of(objective.model.get_base_model()).items():
                for module in modules:
                    hooks = (
                        module.register_forward_pre_hook(lambda *_, part=part: self._start(part)),
                        module.register_forward_hook(lambda *_, part=part: self._stop(part)),
                    )
                    for hook in hooks:
                        self._undo.callback(hook.remove)
            return wrap(accelerator, objective, *args, **kwargs)

        return run

    def _end_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._seconds["vision encoder"] -= self._seconds["MOSS"]  # MOSS runs inside the encoder
            self.steps.append({part: self._seconds[part] for part in MARKED})
            self._seconds.clear()
            return result

        return run

    def _leave_out(self, undisturbed: Callable[..., Any]) -> Callable[..., Any]:
        """Evaluation and saving between steps run the same modules; their time belongs to no step."""

        @contextmanager
        def run() -> Iterator[None]:
            with undisturbed():
                yield
            self._seconds.clear()

        return run


def modules_of(base: Any) -> dict[str, list[nn.Module]]:
    """The modules that make up each part of the forward pass of a VideoLLaMA3."""
    inner = base.model
    return {
        "vision encoder": [inner.vision_model],
        "MOSS": [m for m in inner.vision_model.modules() if isinstance(m, MOSS)],
        "projector": [inner.projector],
        "language model": [inner.language_model, base.lm_head],
    }


def shares(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The share of each of `PARTS` in the time of all steps; the shares add up to 1."""
    total = sum(sum(step.values()) for step in steps)
    return {part: sum(step[part] for step in steps) / total for part in PARTS}


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("json", type=Path, help="file to write")
    parser.add_argument("recipe", type=Path, help="the recipe's file")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the recipe")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe within `StepParts`; write threads, the loop's lines and the parts of each step as json."""
    args = options().parse_args(argv)
    with StepParts() as parts:
        lines = load_recipe(args.recipe).main(args.flags)
    record = {"threads": torch.get_num_threads(), "lines": lines, "steps": parts.join(lines)}
    args.json.write_text(json.dumps(record))


# ---- steps of a shape with random weights


def run_shape(
    shape: str, device: str, steps: int, *, clip_s: float, moss: bool, recomputed: bool
) -> dict[str, Any]:
    """Speed and peak memory of one-clip steps, then the parts of further ones; "failed" if memory is full."""
    gc.collect()
    frames = round(clip_s * SAMPLE_FPS)
    result: dict[str, Any] = {"frames": frames}
    try:
        accelerator, model, groups = build_training(shape, device, moss=moss, recomputed=recomputed)
        clips = RandomClips(model.get_base_model().config, frames, *FRAMES_PX[shape])
        result["estimated_gib"] = estimate_gib(model, groups, frames, shape, device, recomputed=recomputed)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        timed = run_loop(accelerator, model, groups, clips, steps + WARM_UP)[WARM_UP:]
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None
        with StepParts() as parts:
            marked = parts.join(run_loop(accelerator, model, groups, clips, WARM_UP + MARKED_STEPS))
    except torch.OutOfMemoryError:
        return {**result, "failed": "out of memory"}
    step_s = statistics.median(line["seconds"] for line in timed)
    return {
        **result,
        "tokens": timed[0]["tokens"],
        "step_s": step_s,
        "clips_per_s": 1 / step_s,
        "tokens_per_s": timed[0]["tokens"] / step_s,
        "shares": shares(marked[WARM_UP:]),
    }


def build_training(
    shape: str, device: str, *, moss: bool, recomputed: bool
) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Accelerator, a model in bf16 whose trained weights are float32, and its optimizer groups."""
    if shape == "miniature":
        sizes = base_record(shape)["moss"] if moss else None
        base = load_base(shape, moss=sizes, dtype=torch.bfloat16)
    else:
        base = build_shape(shape, moss={} if moss else None, device=device, dtype=torch.bfloat16)
        base.set_attn_implementation(choose_attention(device, torch.bfloat16)[0])
    model = attach_lora(base, rank=LORA_RANK, alpha=LORA_ALPHA, dropout=0.0)
    if recomputed:
        language_model: Any = base.model.language_model
        # As in the recipe: transformers 5.23 has the first name, 5.17 the second only.
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    groups = parameter_groups(model, choose_rates(base))
    return engines.start(), model, groups


class RandomClips:
    """A `training.RowDataset` of one clip of noise with random words; the last `TEXT_TOKENS` are answers."""

    shares: Sequence[tuple[int, float]] = ((1, 1.0),)

    def __init__(self, config: Any, frames: int, height_px: int, width_px: int) -> None:
        vision, noise = config.vision_config, torch.Generator().manual_seed(0)
        rows, columns = height_px // vision.patch_size, width_px // vision.patch_size
        patches, words = frames * rows * columns, frames * TIME_TOKENS + TEXT_TOKENS
        text = torch.randint(10, config.text_config.vocab_size // 2, (words,), generator=noise)
        ids = torch.cat([torch.full((patches // MERGE**2,), config.video_token_id), text])
        pixels = torch.randn(patches, vision.num_channels * vision.patch_size**2, generator=noise)
        self.example = {
            "input_ids": ids,
            "labels": torch.cat([torch.full_like(ids[:-TEXT_TOKENS], IGNORED), ids[-TEXT_TOKENS:]]),
            "pixel_values_videos": pixels,
            "video_grid_thw": torch.tensor([[frames, rows, columns]]),
            "video_merge_sizes": torch.tensor([MERGE]),
            "video_compression_mask": torch.ones(patches // MERGE**2, dtype=torch.bool),
        }

    def name(self, index: int) -> str:
        """The row's name in messages."""
        return f"clip {index}"

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.example

    def collate(self, rows: list[Any]) -> dict[str, Any]:
        """A batch with the entries that the loop needs."""
        batch = collate(rows, pad_id=0)
        counts = {"count": TEXT_TOKENS * len(rows), "read": batch["input_ids"].numel()}
        return {**batch, **counts, "row_ids": ["noise"] * len(rows), "rejected": []}


class KeepNothing:
    """A `training.loop.CheckpointKeeper` that writes no weights."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def save(self, folder: Path, state: Any, step: int) -> None:
        """Write nothing."""

    def restore(self, folder: Path) -> None:
        """Read nothing."""

    def check(self, folder: Path, state: Any) -> None:
        """Compare nothing."""


def run_loop(
    accelerator: Any, model: Any, groups: Any, clips: RandomClips, steps: int
) -> list[dict[str, Any]]:
    """`training.loop.train` on one clip per step, in a temporary folder."""
    loop = Loop(steps=steps, batch_size=1, workers=0, save_every=steps)
    with tempfile.TemporaryDirectory() as out:
        objective = AnswerLoss(model, torch.bfloat16)
        return train(accelerator, objective, groups, clips, loop, out=Path(out), keeper=KeepNothing())


def estimate_gib(model: Any, groups: Any, frames: int, shape: str, device: str, *, recomputed: bool) -> float:
    """The estimate of `moss_vllm.vlm.video_llama3.memory` in GiB."""
    config = model.get_base_model().config
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    estimate = estimate_training_memory(
        config,
        lora_rank=LORA_RANK,
        frames=frames,
        height_px=FRAMES_PX[shape][0],
        width_px=FRAMES_PX[shape][1],
        text_tokens=TEXT_TOKENS,
        batch_size=1,
        precision="bf16",
        checkpoint_llm=recomputed,
        trained_parameters=trained,
        frozen_parameters=sum(parameter.numel() for parameter in model.parameters()) - trained,
        attention=config._attn_implementation,
        frozen_dtype=torch.bfloat16,
        fused_stss=stss_path(torch.device(device), VIDEO_LLM.window)[0] == "fused",
    )
    return estimate.total / GIB


if __name__ == "__main__":
    main()
