"""A boundary model by name: its ResNet, the module in MOSS's place and the sizes of its preset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.boundaries.head import BoundaryHead
from moss_vllm.core.boundary_presets import BOUNDARIES, BoundaryPreset
from moss_vllm.core.presets import build_temporal, fill_sizes
from moss_vllm.encoders.resnet import open_resnet


def build_gebd(
    *,
    variant: str | BoundaryPreset = "r50",
    temporal: str = "moss",
    temporal_layers: Sequence[int] | None = None,
    temporal_options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    chunk_frames: int | None = 10,
    one_frame: bool = False,
) -> GEBD:
    """BasicGEBD of a preset, with MOSS, another temporal module or none.

    Args:
        variant: "r50" or "mini" of `boundary_presets.BOUNDARIES`, or a preset.
        temporal: a name of `build_temporal`.
        temporal_layers: stages with such a module, counted from 1, instead of the preset's.
        temporal_options: keyword arguments of the module; for "moss" and "stss1" they replace the preset's.
        weights: of the ResNet instead of the preset's, see `open_resnet`.
        chunk_frames: see `ResNetEncoder`.
        one_frame: see `GEBD`.

    Raises:
        ValueError: an unknown name, a stage that the ResNet does not have, options that the module does not
            have; see `open_resnet` and `build_temporal`.
        OSError: weights that cannot be downloaded or read.
    """
    if not isinstance(variant, BoundaryPreset) and variant not in BOUNDARIES:
        raise ValueError(f"unknown variant '{variant}'; choose one of {', '.join(BOUNDARIES)}")
    preset = variant if isinstance(variant, BoundaryPreset) else BOUNDARIES[variant]
    encoder = open_resnet(
        {"stem": preset.stem, "planes": preset.planes, "blocks": preset.blocks},
        weights=preset.weights if weights is None else weights,
        chunk_frames=chunk_frames,
        name="the given ResNet" if isinstance(variant, BoundaryPreset) else f"the ResNet of '{variant}'",
    )
    options = fill_sizes(preset, temporal, temporal_options or {})
    if temporal != "none":
        options = {"zero_init": True, **options}
    modules = {}
    for stage in (preset.after_stage,) if temporal_layers is None else temporal_layers:
        width = encoder.width_after(stage)
        module = build_temporal(temporal, width, width, **options)
        if module is not None:
            modules[stage] = module
    head = BoundaryHead(encoder.widths[-1], d_frame=preset.d_frame, map_widths=preset.map_widths)
    return GEBD(encoder, head, temporal=modules, one_frame=one_frame)
