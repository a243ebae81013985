"""Rows and micro-batches from the settings of the recipe that fine-tunes a Video-LLM."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from moss_vllm.data.streams import Stream, open_sources
from moss_vllm.data.world.benchmarks import ensure_world
from moss_vllm.training.settings import accumulate_for
from moss_vllm.training.start import data_seed
from moss_vllm.vlm.held_out import hold_out
from moss_vllm.vlm.plan import Plan, plan

Settings = TypeVar("Settings", bound=Any)


def set_accumulate(settings: Settings, accelerator: Accelerator, clips_a_step: int) -> Settings:
    """The settings with `accumulate` for this number of processes."""
    at_once = settings.batch_size * accelerator.num_processes
    accumulate = accumulate_for(clips_a_step, at_once)
    if accumulate * at_once != clips_a_step:
        accelerator.print(
            f"{accumulate * at_once} clips per step: {clips_a_step} is no multiple of {at_once}"
        )
    return dataclasses.replace(settings, accumulate=accumulate)


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
        "sampling": settings.sampling,
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
