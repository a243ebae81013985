"""A detector by name: its encoder, the module in MOSS's place and the sizes of its preset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.core.detection_presets import DETECTORS, DetectionPreset
from moss_vllm.core.presets import build_temporal, fill_sizes
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.detector import Detector
from moss_vllm.encoders.videomae import open_video_encoder


def build_adatad(
    *,
    variant: str | DetectionPreset = "b",
    classes: int = 20,
    temporal: str = "moss",
    temporal_layers: Sequence[int] | None = None,
    temporal_options: Mapping[str, Any] | None = None,
    in_chunks: bool = False,
    encoder: str | Path | None = None,
    weights: str | Path = "pretrained",
    revision: str | None = None,
    drop_path: float | None = None,
    checkpointing: bool = True,
    one_frame: bool = False,
    detector_options: Mapping[str, Any] | None = None,
) -> AdaTAD:
    """AdaTAD of a preset, with MOSS, another temporal module or none.

    Args:
        variant: a name of `detection_presets.DETECTORS`, or a preset.
        classes: kinds of actions; THUMOS-14 has 20.
        temporal: a name of `build_temporal`.
        temporal_layers: layers with such a module, counted from 1, instead of the preset's.
        temporal_options: keyword arguments of the module; for "moss" and "stss1" they replace the preset's.
        in_chunks: see `AdaTAD`.
        encoder: another encoder than the preset's, see `open_video_encoder`.
        weights: of the encoder, see `open_video_encoder`.
        revision: of the encoder on the hub.
        drop_path: of the encoder, instead of the preset's, see `VideoEncoder`.
        checkpointing: of encoder, MOSS and detector, see `AdaTAD.set_checkpointing`.
        one_frame: see `VideoEncoder`.
        detector_options: keyword arguments of `Detector`, instead of the preset's.

    Raises:
        ValueError: an unknown name, a layer that the encoder does not have, options that the module does not
            have; see `open_video_encoder` and `build_temporal`.
        OSError: weights that cannot be downloaded or read.
    """
    if not isinstance(variant, DetectionPreset) and variant not in DETECTORS:
        raise ValueError(f"unknown variant '{variant}'; choose one of {', '.join(DETECTORS)}")
    preset = variant if isinstance(variant, DetectionPreset) else DETECTORS[variant]
    opened = open_video_encoder(
        preset.encoder if encoder is None else encoder,
        weights=weights,
        revision=revision,
        drop_path=preset.drop_path if drop_path is None else drop_path,
        checkpointing=checkpointing,
        one_frame=one_frame,
    )
    options = fill_sizes(preset, temporal, temporal_options or {})
    if temporal != "none":
        options = {"zero_init": True, **options}  # AdaTAD starts unchanged
    modules = {}
    for layer in (preset.after_layer,) if temporal_layers is None else temporal_layers:
        module = build_temporal(temporal, opened.d_in, opened.d_in, **options)
        if module is not None:
            modules[layer] = module
    detector = Detector(opened.d_in, classes, **{**preset.detector, **(detector_options or {})})
    return AdaTAD(opened, detector, temporal=modules, in_chunks=in_chunks)
