"""The runs of `experiments/orders.py`: its clips, what the frozen vision tower sees of them, one training."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/orders_runs.py is a part of orders.py, not a command")

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from moss_vllm.core.ladder import Ladder
from moss_vllm.core.presets import MINI, build_ladder
from moss_vllm.data.world import segments
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import versions
from moss_vllm.training.optim import warmup_cosine
from moss_vllm.vlm.base import load_base

WINDOW = (3, 5, 5)  # a frame and two patches to each side
# What stands between encoder and ladder; the compared modules are as narrow as in Table 10c's miniature.
ROWS: dict[str, dict[str, Any]] = {
    "none": {"temporal": "none"},
    "1st order": {"temporal": "stss1"},
    "2nd order": {"temporal": "moss", "orders": (2,)},
    "MOSS": {"temporal": "moss", "orders": (1, 2)},
    "orders 1 and 3": {"temporal": "moss", "orders": (1, 3)},
    "ATM": {"temporal": "atm", "window": WINDOW, "d_hidden": 16},
    "SELFY": {"temporal": "selfy", "window": WINDOW, "d_hidden": 32},
    "R(2+1)D": {"temporal": "r2plus1d", "d_hidden": 32},
}
LAYERS = (3, 6)  # of the tower's 7; a temporal module reads the first
CLIPS_A_STEP, LR, WEIGHT_DECAY, SMOOTHING, CLIP_NORM = 16, 2e-3, 0.15, 0.1, 20.0  # as the recipe's miniature
WARMUP_SHARE, FLOOR = 0.1, 0.01
TESTS = 10  # of a run, evenly spaced
NAMES = list(segments.SEGMENT_CLASSES)
WEIGHTS = "ladder.safetensors"  # in a finished run's folder


def draw_clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips of all classes in equal parts, a pixel for each square, and their labels.

    Shape:
        returns: (N, T, 20, 20, 3) uint8, (N,).
    """
    rng = np.random.default_rng((seed, count))
    labels = rng.permutation(np.arange(count) % len(NAMES))
    side = segments.SQUARE_PX
    clips = [
        segments.render_segments(segments.draw_segments(rng, NAMES[label]))[:, ::side, ::side]
        for label in show_progress(labels.tolist(), count, "clips drawn")
    ]
    return torch.from_numpy(np.stack(clips)), torch.from_numpy(labels)


def pixels(squares: Tensor) -> Tensor:
    """Frames as encoder and ladder get them: (..., 20, 20, 3) -> (..., 3, 140, 140), from -1 to 1."""
    side = segments.SQUARE_PX
    whole = squares.movedim(-1, -3).float() / 127.5 - 1
    return whole.repeat_interleave(side, -1).repeat_interleave(side, -2)


class Tower:
    """The vision tower of a miniature Video-LLM as a frozen encoder: its layers' tokens.

    Shape:
        (N, 3, H', W') -> (layers, N, H*W, d_in), in the order of the grid.
    """

    def __init__(self, base: str) -> None:
        model: Any = load_base(base)
        self.vision = model.model.vision_model.eval().requires_grad_(False)
        self.patch_px: int = self.vision.config.patch_size

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Tokens after each of LAYERS."""
        count, (rows, columns) = len(frames), (side // self.patch_px for side in frames.shape[-2:])
        patches = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=self.patch_px, q=self.patch_px)
        kept: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            kept[layer] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.vision.encoder.layers[layer - 1].register_forward_hook(
                lambda module, given, output, layer=layer: keep(layer, output)
            )
            for layer in LAYERS
        ]
        try:
            grids = torch.tensor([[1, rows, columns]] * count)
            self.vision(patches, grids, torch.ones(count, dtype=torch.long))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([kept[layer].view(count, rows * columns, -1) for layer in LAYERS])


def features_of(clips: Tensor, base: str, file: Path) -> Tensor:
    """What the tower sees of the clips, run once and kept in `file`: (N, layers, T, H*W, d_in) float16."""
    if not file.is_file():
        tower = Tower(base)
        seen = []
        for clip in show_progress(clips, len(clips), "clips encoded"):
            seen.append(tower(pixels(clip)).half())
        with whole_file(file) as part:
            np.save(part, torch.stack(seen).numpy())
    return torch.from_numpy(np.load(file, mmap_mode="c"))


# ---- one run


def build(row: str, d_in: int) -> Ladder:
    """The ladder with the row's module."""
    preset = replace(MINI, d_in=d_in, layers=LAYERS, moss_layers=LAYERS[:1], window=WINDOW)
    return build_ladder(preset, classes=len(NAMES), image_size=segments.SEGMENT_FRAME_PX, **ROWS[row])


def taps_of(seen: Tensor) -> list[Tensor]:
    """The ladder's taps: the mean of a frame's patches stands for the class token that the tower lacks."""
    return [torch.cat([tap.mean(2, keepdim=True), tap], 2) for tap in seen.float().unbind(1)]


@torch.no_grad()
def accuracy(ladder: Ladder, seen: Tensor, clips: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent right of all clips and of each group, all classes to choose from."""
    ladder.eval()
    rows = torch.arange(len(labels)).split(CLIPS_A_STEP)
    chosen = torch.cat([ladder(taps_of(seen[r]), pixels(clips[r])).argmax(-1) for r in rows])
    ladder.train()
    right = (chosen == labels).float()
    groups = np.array([segments.SEGMENT_CLASSES[NAMES[label]] for label in labels.tolist()])
    scores = {"all": float(right.mean())}
    scores |= {g: float(right[torch.from_numpy(groups == g)].mean()) for g in segments.SEGMENT_GROUPS}
    return {name: 100 * value for name, value in scores.items()}


def train_run(row: str, seed: int, steps: int, folder: Path, files: Sequence[Path], threads: int) -> None:
    """Train and test one ladder; writes log.jsonl, then weights and result.json. Continues a stopped run."""
    torch.set_num_threads(threads)
    (clips, labels), (test_clips, test_labels) = (torch.load(file) for file in files[:2])
    seen, test_seen = (torch.from_numpy(np.load(file, mmap_mode="c")) for file in files[2:])
    torch.manual_seed(seed)
    ladder = build(row, seen.shape[-1])
    optimizer = torch.optim.AdamW(ladder.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    state, log, begun = folder / "state.pt", list[dict[str, Any]](), 0
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        kept = torch.load(state)
        ladder.load_state_dict(kept["ladder"])
        optimizer.load_state_dict(kept["optimizer"])
        begun, log = kept["step"], kept["log"]
    shown = slice(0, len(test_labels) // 2)
    an_epoch = len(labels) // CLIPS_A_STEP
    every = max(1, steps // TESTS)
    losses: list[float] = []
    parent = os.getppid()
    for step in range(begun, steps):
        if os.getppid() != parent:  # the command was killed; when it continues it starts this run again
            raise SystemExit(1)
        epoch, place = divmod(step, an_epoch)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        rows = order[place * CLIPS_A_STEP :][:CLIPS_A_STEP]
        factor = warmup_cosine(step, total=steps, warmup=max(1, int(WARMUP_SHARE * steps)), floor=FLOOR)
        for group in optimizer.param_groups:
            group["lr"] = LR * factor
        scores = ladder(taps_of(seen[rows]), pixels(clips[rows]))
        loss = F.cross_entropy(scores, labels[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ladder.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % every == 0 or step + 1 == steps:
            test = accuracy(ladder, test_seen, test_clips, test_labels)
            train = accuracy(ladder, seen[shown], clips[shown], labels[shown])
            log.append({"step": step + 1, "loss": statistics.fmean(losses), "test": test, "train": train})
            losses.clear()
            kept = {"ladder": ladder.state_dict(), "optimizer": optimizer.state_dict()}
            with whole_file(state) as part:
                torch.save({**kept, "step": step + 1, "log": log}, part)
            with whole_file(folder / "log.jsonl") as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in log))
    trainable = sum(parameter.numel() for parameter in ladder.parameters())
    with whole_file(folder / WEIGHTS) as part:
        save_file(ladder.state_dict(), part)
    with whole_file(folder / "result.json") as part:
        place = {"machine": f"{platform.machine()}, {threads} threads", "versions": versions()}
        result = {"seed": seed, "trainable": trainable, **place, "log": log}
        part.write_text(json.dumps(result, indent=1) + "\n")
    state.unlink()
