"""The steps, windows and tests that `experiments/benchmark_detection.py` times."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    raise SystemExit("experiments/detection_steps.py is a part of benchmark_detection.py, not a command")

import numpy as np
import torch
from measuring import MIB, Meter, clear, spread
from torch import Tensor, nn

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.decoding import DecodeSettings, decode_windows, merge_windows
from moss_vllm.detection.memory import estimate_memory
from moss_vllm.detection.pixels import read_window
from moss_vllm.detection.points import pyramid_points
from moss_vllm.detection.windows import WindowSettings, training_window
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.step_memory import GIB
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import read_frames
from moss_vllm.video.write import write_clip

WAYS = {
    "ours": "with MOSS, layers computed again (ours)",
    "without MOSS": "without MOSS, layers computed again",
    "all kept": "with MOSS, everything kept",
}
STEP_PARTS = ("encoder", "adapters", "MOSS", "detector", "loss", "backward", "clip and AdamW")
STRIDE, FPS, VIDEO_PX, SHORT_SIDE_PX = 4, 30, (180, 320), 182
CLASSES, ACTIONS, WINDOWS_A_VIDEO = 20, 12, 4  # THUMOS-14's test: 792 windows of 211 videos
LR, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.05, 1.0  # AdaTAD's
NORMALISER = 100.0  # of the loss, at the start


class Setting(NamedTuple):
    """What is measured."""

    variant: str
    frames: int
    size_px: int
    precision: str
    device: str

    def build(self) -> AdaTAD:
        """AdaTAD with MOSS and random weights, in training."""
        torch.manual_seed(0)
        model = build_adatad(variant=self.variant, weights="random", classes=CLASSES)
        return model.to(self.device).train()

    def clips(self) -> Tensor:
        """One window of noise: uint8 (1, T, 3, H, W)."""
        size = (1, self.frames, 3, self.size_px, self.size_px)
        return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(
            self.device
        )

    def autocast(self) -> Any:
        """The context of the arithmetic."""
        dtype = AUTOCAST[self.precision]
        return torch.autocast(self.device, dtype) if dtype else nullcontext()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Step(nn.Module):
    """The loss of a window in one of `WAYS`; drop-path and the normaliser are the same at every call.

    Shape:
        uint8 (1, T, 3, H, W) -> ().
    """

    def __init__(self, model: AdaTAD, way: str, setting: Setting) -> None:
        super().__init__()
        self.model, self.way, self.setting = model, way, setting
        self.names = dict(model.temporal_names)
        starts = torch.linspace(0, 0.9 * setting.frames, ACTIONS)
        ends = starts + torch.linspace(3, setting.frames / 8, ACTIONS)
        self.segments = torch.stack([starts, ends.clamp(max=setting.frames)], dim=1).to(setting.device)
        self.labels = torch.arange(ACTIONS, device=setting.device) % CLASSES
        self.mask = torch.ones(1, setting.frames, dtype=torch.bool, device=setting.device)

    def outputs(self, clips: Tensor) -> Any:
        """The detector's outputs."""
        self.model.temporal_names = {} if self.way == "without MOSS" else self.names
        self.model.set_checkpointing(self.way != "all kept")
        torch.manual_seed(0)
        with self.setting.autocast():
            return self.model(clips, self.mask)

    def losses(self, outputs: Any) -> Any:
        """Both losses."""
        self.model.loss.normaliser.fill_(NORMALISER)
        return self.model.loss(outputs, [self.segments], [self.labels])

    def forward(self, clips: Tensor) -> Tensor:
        """The sum of the losses."""
        losses = self.losses(self.outputs(clips))
        return losses.classes + losses.segments


def measure_step(setting: Setting, repeats: int) -> dict[str, dict[str, Any]]:
    """All `WAYS` in turns, after comparing their losses; ratios are to ours."""
    model, clips = setting.build(), setting.clips()
    ways = {way: Step(model, way, setting) for way in WAYS}
    meter, grad = Meter(setting.device, threads=1), torch.ones((), device=setting.device)
    losses: dict[str, float] = {}
    costs: dict[str, dict[str, Any]] = {}
    for way, step in ways.items():  # which also warms up
        with AliveBytes(*model.parameters(), *model.buffers(), clips) as alive:
            loss = step(clips)
        losses[way], kept = loss.item(), alive.now / MIB
        del loss
        costs[way] = {"kept_mib": kept, "peak_mib": meter.peak_mib(step, clips, grad)}
        clear(step, clips)
    # A GPU may add up in another order in each way; on a CPU the losses are equal to the bit.
    allowed = 0.01 * max(losses.values()) if setting.device == "cuda" else 0.0
    if not max(losses.values()) - min(losses.values()) <= allowed:
        raise SystemExit(f"the ways have different losses at the start: {losses}")
    times: list[list[tuple[float, float]]] = []
    for _ in range(repeats):
        times.append([])
        for step in ways.values():
            times[-1].append(meter.step_ms(step, clips, grad))
            clear(step, clips)
    for way, measured in zip(ways, zip(*times, strict=True), strict=True):
        forward, whole = (spread([one / 1e3 for one in column]) for column in zip(*measured, strict=True))
        costs[way] |= {"loss": losses[way], "forward_s": forward, "step_s": whole}
    ours = costs["ours"]
    for one in costs.values():
        one["ratio"] = {"step_s": one["step_s"]["median"] / ours["step_s"]["median"]}
        one["ratio"] |= {key: one[key] / ours[key] for key in ("kept_mib", "peak_mib") if ours[key]}
    return costs


class Clock:
    """Adds up the seconds of parts; those inside a part belong to it as well. On a CPU they are CPU time."""

    def __init__(self, setting: Setting) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.setting = setting
        self.now = Meter(setting.device, threads=1).clock if setting.device == "cpu" else time.perf_counter

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what happens inside `with`."""
        self.setting.wait()
        start = self.now()
        yield
        self.setting.wait()
        self.seconds[part] += self.now() - start

    def around(self, module: nn.Module, part: str) -> None:
        """Time every later call of a module."""
        forward: Callable[..., Any] = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            with self(part):
                return forward(*args, **kwargs)

        module.forward = run  # type: ignore[method-assign]


def measure_parts(setting: Setting, repeats: int) -> dict[str, Any]:
    """Seconds of each of `STEP_PARTS`, and their shares of the step."""
    model, clips, clock = setting.build(), setting.clips(), Clock(setting)
    step, optimizer = Step(model, "ours", setting), _optimizer(model)
    clock.around(model.encoder, "encoder")
    clock.around(model.detector, "detector")
    for adapter in model.adapters:
        clock.around(adapter, "adapters")
    for name in model.temporal_names.values():
        clock.around(model.get_submodule(name), "MOSS")
    found: list[dict[str, float]] = []
    for _ in range(1 + repeats):
        optimizer.zero_grad()
        clock.seconds.clear()
        outputs = step.outputs(clips)
        with clock("loss"):
            losses = step.losses(outputs)
        forward = dict(clock.seconds)  # backward computes layers again: that is part of backward
        forward["encoder"] -= forward["adapters"] + forward["MOSS"]
        with clock("backward"):
            (losses.classes + losses.segments).backward()
        with clock("clip and AdamW"):
            _update(model, optimizer)
        found.append({**forward, **{part: clock.seconds[part] for part in STEP_PARTS if part not in forward}})
    return _spreads([{part: one[part] for part in STEP_PARTS} for one in found[1:]])  # the first warms up


def _spreads(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Spread of each part, and its share of the sum of all."""
    seconds = {part: spread([row[part] for row in rows]) for part in rows[0]}
    whole = sum(one["median"] for one in seconds.values())
    return {"seconds": seconds, "shares": {part: one["median"] / whole for part, one in seconds.items()}}


def _optimizer(model: AdaTAD) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_trained(model), lr=LR, weight_decay=WEIGHT_DECAY)


def _trained(model: AdaTAD) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _update(model: AdaTAD, optimizer: torch.optim.Optimizer) -> float:
    """Clip and step; returns the norm of the gradient before."""
    norm = nn.utils.clip_grad_norm_(_trained(model), CLIP_NORM)
    optimizer.step()
    return norm.item()


def train_steps(setting: Setting, steps: int) -> dict[str, Any]:
    """Whole training steps, after comparing the first outputs with those without MOSS."""
    model, clips, clock = setting.build(), setting.clips(), Clock(setting)
    step, without, optimizer = (
        *(Step(model, way, setting) for way in ("ours", "without MOSS")),
        _optimizer(model),
    )
    with torch.no_grad():
        plain = without.outputs(clips)
    lines, is_equal = [], False
    alive = AliveBytes(*model.parameters(), *model.buffers(), clips)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(steps):
        clock.seconds.clear()
        optimizer.zero_grad()
        with alive:
            with clock("forward_s"):
                outputs = step.outputs(clips)
                losses = step.losses(outputs)
            with clock("backward_s"):
                (losses.classes + losses.segments).backward()
            with clock("optimizer_s"):
                norm = _update(model, optimizer)
        if number == 0:
            pairs = zip(outputs, plain, strict=True)
            is_equal = all(
                torch.equal(a.cls_logits, b.cls_logits) and torch.equal(a.distances, b.distances)
                for a, b in pairs
            )
        values = {"classes": losses.classes.item(), "segments": losses.segments.item(), "norm": norm}
        if not np.isfinite(list(values.values())).all():
            raise SystemExit(f"step {number + 1} is not finite: {values}")
        lines.append({**clock.seconds, **values, "positives": int(losses.positives)})
        del outputs, losses
    sizes: dict[str, Any] = {"frames": setting.frames, "size_px": setting.size_px}
    estimate = estimate_memory(model, windows=1, precision=setting.precision, average=False, **sizes)
    given = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), clips))
    return {
        "steps": lines,
        "equal_without_moss": is_equal,
        "peak_gib": (given + alive.peak) / GIB,
        "estimated_gib": estimate.total / GIB,
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB if setting.device == "cuda" else None,
    }


def measure_reading(setting: Setting, repeats: int) -> dict[str, Any]:
    """CPU seconds to read one window of a generated video, from the file and from a filled cache."""
    windows = WindowSettings(steps=setting.frames, stride=STRIDE)
    n_frames = setting.frames * STRIDE + 8 * FPS
    found: dict[str, list[float]] = {"file_s": [], "cache_s": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_clip(draw_video(n_frames), path, fps=FPS)
        video = DetectionVideo("video", str(path), n_frames / FPS, n_frames, (Action(1.0, 2.0, 0),))
        window = training_window(video, n_frames, windows, 0, setting.frames)
        cache = FrameCache(Path(folder) / "cache")
        for read in (cache.read_frames, *[read_frames, cache.read_frames] * repeats):  # the first one fills
            start = time.process_time()
            frames = read_window(video, window, short_side_px=SHORT_SIDE_PX, read=read)
            found["file_s" if read is read_frames else "cache_s"].append(time.process_time() - start)
        used = cache.measure() / MIB
    sizes = {"frames": len(frames), "video_frames": n_frames, "cache_mib": used}
    return {"file_s": spread(found["file_s"]), "cache_s": spread(found["cache_s"][1:]), **sizes}


def draw_video(n_frames: int) -> np.ndarray:
    """A picture of smooth noise that moves by a pixel from frame to frame: uint8 (T, H, W, 3)."""
    height, width = VIDEO_PX
    coarse = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    picture = coarse.repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(picture, number, axis=1) for number in range(n_frames)])


@torch.inference_mode()
def measure_test(setting: Setting, repeats: int) -> dict[str, Any]:
    """Seconds of a window of a test: forward pass, decoding, and its share of the video's soft-NMS."""
    model, clips, clock = setting.build().eval(), setting.clips(), Clock(setting)
    n_frames = setting.frames * STRIDE * (WINDOWS_A_VIDEO + 1) // 2
    video = DetectionVideo("video", "", n_frames / FPS, n_frames, ())
    starts = [setting.frames * STRIDE // 2 * number for number in range(WINDOWS_A_VIDEO)]
    step, settings, rows = Step(model, "ours", setting), DecodeSettings(), []
    for _ in range(1 + repeats):
        clock.seconds.clear()
        with clock("forward"):
            levels = step.outputs(clips)
        points = pyramid_points([level.mask.shape[1] for level in levels], device=clips.device)
        with clock("decoding"):
            windows = [decode_windows(levels, points, [(video, start)], settings)[0] for start in starts]
        with clock("soft-NMS"):
            merge_windows(windows, settings)
        each = {"decoding": WINDOWS_A_VIDEO, "soft-NMS": WINDOWS_A_VIDEO}
        rows.append({part: seconds / each.get(part, 1) for part, seconds in clock.seconds.items()})
    found = _spreads(rows[1:])
    whole = statistics.fmean(sum(row.values()) for row in rows[1:])
    return {**found, "windows_per_s": 1 / whole, "detections": len(windows[0])}
