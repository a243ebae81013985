"""Rows and micro-batches from the settings of the recipe that fine-tunes a Video-LLM."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from moss_vllm.data.streams import Stream, open_sources
from moss_vllm.data.world.benchmarks import ensure_world
from moss_vllm.training.settings import accumulate_for
from moss_vllm.training.start import data_seed
from moss_vllm.video.clip import Sampling
from moss_vllm.vlm.base import check_kind
from moss_vllm.vlm.families import family_with, find_family
from moss_vllm.vlm.held_out import hold_out
from moss_vllm.vlm.plan import Plan, plan
from moss_vllm.vlm.processor import fit_clip_settings

# Families by model_type; width from which a preset is the nearest; its name.
PRESETS = (
    ("video_llama_3", 0, "videollama3_2b"),
    ("qwen2_5_vl", 0, "qwen2_5_vl_3b"),
    ("qwen2_5_vl", 3584, "qwen2_5_vl_7b"),
    ("qwen2_vl", 0, "qwen2_5_vl_3b"),
    ("qwen3_vl", 0, "qwen3_vl_2b"),
    ("qwen3_vl", 2560, "qwen3_vl_4b"),
    ("smolvlm", 0, "smolvlm2_2_2b"),
    ("glm4v", 0, "qwen2_5_vl_7b"),
    ("internvl", 0, "videollama3_2b"),
    ("llava_onevision", 0, "videollama3_2b"),
    ("perception_lm", 0, "videollama3_2b"),
)
STEPS_A_SECOND, MOST_STEPS = 2.0, 180  # Sec. 4.5 of the paper; VideoLLaMA3's own limit

Settings = TypeVar("Settings", bound=Any)


def preset_name(model: str, revision: str | None) -> str:
    """Which of `recipes/configs/favor_*.yaml` is for a model: of its family, and nearest below its width.

    Raises:
        FileNotFoundError: no model is there.
        ValueError: a model of no family.
    """
    if model.startswith("shape:"):
        names = [name for *_, name in PRESETS]
        return name if (name := model.removeprefix("shape:")) in names else names[0]
    config = check_kind(model, revision)
    family = find_family(config["model_type"], model)
    text = config.get("text_config", config)  # Qwen2-VL's releases have no section for the text
    width = text.get("hidden_size") if isinstance(text, dict) else None
    width = width if isinstance(width, int) else 0
    fitting = [row for row in PRESETS if row[0] in family.model_types and row[1] <= width]
    return max(fitting, key=lambda row: row[1])[2]


def borrower(model: str, revision: str | None) -> str | None:
    """The model_type of a model whose preset is another family's; None for a family with its own."""
    if model.startswith("shape:"):
        return None
    name = preset_name(model, revision)
    owner = next(model_type for model_type, _, preset in PRESETS if preset == name)
    types = find_family(check_kind(model, revision)["model_type"], model).model_types
    return None if owner in types else types[0]


def set_accumulate(settings: Settings, accelerator: Accelerator, clips_a_step: int) -> Settings:
    """The settings with `accumulate` for this number of processes."""
    at_once = settings.batch_size * accelerator.num_processes
    accumulate = accumulate_for(clips_a_step, at_once)
    if accumulate * at_once != clips_a_step:
        accelerator.print(
            f"{accumulate * at_once} clips per step: {clips_a_step} is no multiple of {at_once}"
        )
    return dataclasses.replace(settings, accumulate=accumulate)


def fit_clips(settings: Settings, processor: Any, asked: Collection[str]) -> Settings:
    """The settings with clips as a processor's family takes them: two steps of time a second, 180 at most.

    A step is one frame, or two where the family's encoder joins pairs of them.

    Args:
        settings: the recipe's dataclass.
        processor: of the model.
        asked: names of the settings that the user gave.

    Raises:
        ValueError: as `fit_clip_settings`; several clips in a batch of a family that takes equal ones alone;
            MOSS on clips of one step of time.
    """
    family = family_with(processor)
    if settings.batch_size > 1 and not family.mixes_lengths:
        raise ValueError(
            f"batch_size is {settings.batch_size}, and {family.title} takes clips of one length together: "
            "give batch_size 1, and clips_a_step for more clips in a step"
        )
    frames = family.chat.frames_per_step(processor)
    usual = {"sample_fps": STEPS_A_SECOND * frames, "max_frames": MOST_STEPS * frames}
    clips = {name: getattr(settings, name) for name in ("short_side_px", "compress_tokens")}
    clips = fit_clip_settings(processor, clips, asked)
    clips |= {name: value for name, value in usual.items() if getattr(settings, name) is None}
    fitted = dataclasses.replace(settings, **clips)
    if fitted.use_moss and fitted.max_frames < 2 * frames:
        raise ValueError(
            f"max_frames is {fitted.max_frames}, and MOSS learns nothing of clips with one step of time, "
            f"which {family.title} makes of {frames} frame{'s' * (frames > 1)}: give {2 * frames} or more"
        )
    return fitted


def sampling_of(settings: Any, processor: Any) -> Sampling:
    """How clips are read: the settings of `fit_clips`, and the sizes of frames that the processor takes."""
    sides = family_with(processor).chat.frame_size(processor)
    return Sampling(settings.sample_fps, settings.short_side_px, settings.max_frames, sides)


def plan_rows(
    settings: Any, processor: Any, out: Path | None, *, write: bool
) -> tuple[Plan, Plan | None, list[Stream | None]]:
    """The rows to train on, of a streamed source the first ones; the rows that are held out; the streams.

    Raises:
        RunStopped: too many rows cannot be used.
        ValueError: as `hold_out`, and for rows held out of a stream.
    """
    data = settings.data or ensure_world() / "FAVOR"
    measuring: dict[str, Any] = {
        "sampling": sampling_of(settings, processor),
        "compress": settings.compress_tokens,
        "max_tokens": settings.max_tokens,
        "cache": out and out / "measured.jsonl",
        "workers": max(2, settings.workers),
    }
    sources, streams = open_sources(
        data, settings.videos, cache=settings.cache, stream=settings.stream, seed=data_seed(settings)
    )
    if settings.held_out and any(streams):
        raise ValueError(
            f"held_out is {settings.held_out} and {data} has a source to stream, whose rows are not known "
            "before the first step; leave held_out or the stream out"
        )
    rows = plan(sources, processor, **measuring)
    if out and write:
        rows.write(out)
    rows.check(settings.max_rejected_share)
    return (*hold_out(rows, settings.held_out), streams) if settings.held_out else (rows, None, streams)
