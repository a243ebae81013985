"""Video classifiers by name: the ladder beside a frozen encoder, and the other hosts of Table 10d.

model = build_classifier(variant="s", classes=174)                    # MOSS-S beside CLIP ViT-B/16
model = build_classifier(variant="l", backbone="eva02_clip_l14", classes=48)
model = build_classifier(host="aim", classes=174, temporal="none")    # the baseline
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from moss_vllm.core import presets
from moss_vllm.core.presets import LadderPreset, build_ladder, build_temporal, fill_sizes
from moss_vllm.encoders.image import full_name, open_encoder, open_vit
from moss_vllm.recognition.hosts.aim import AIM
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.hosts.dist import DiST
from moss_vllm.recognition.hosts.full import FullFineTune
from moss_vllm.recognition.hosts.ladder import LadderClassifier

HOSTS = ("ladder", "full", "aim", "dist")


def build_classifier(
    *,
    host: str = "ladder",
    variant: str | LadderPreset = "s",
    backbone: str | None = None,
    classes: int,
    temporal: str = "moss",
    temporal_layers: Sequence[int] | None = None,
    temporal_options: Mapping[str, Any] | None = None,
    weights: str | Path = "pretrained",
    frames: int = 8,
    image_size: int = 224,
) -> VideoClassifier:
    """A classifier by name, with MOSS, another temporal module or none.

    Args:
        host: "ladder"; "full" fine-tuning, "aim" or "dist" (Table 10d).
        variant: a preset of the ladder, "s", "b", "m" or "l", or one of your own; the other hosts take their
            encoder, and MOSS's layer and sizes, from it.
        backbone: another image encoder, by a name of `open_encoder`.
        classes: scores of the head.
        temporal: a name of `build_temporal`.
        temporal_layers: layers with such a module, counted from 1, instead of the preset's.
        temporal_options: keyword arguments of the module.
        weights: of the image encoder, see `open_encoder`.
        frames: frames of a clip for which tables over time are laid out; other numbers work too.
        image_size: side of a clip in pixels for which position tables are laid out; other sizes work too.

    Raises:
        ValueError: an unknown name, a layer that the encoder does not have, options that the module does not
            have; see `open_vit` and `build_temporal`.
        OSError: weights that cannot be downloaded or read.
    """
    if host not in HOSTS:
        raise ValueError(f"unknown host '{host}'; choose one of {', '.join(HOSTS)}")
    preset = find_preset(variant)
    preset = replace(preset, backbone=full_name(preset.backbone if backbone is None else backbone))
    options = dict(temporal_options or {})
    encoder_options: dict[str, Any] = {"weights": weights, "image_size": image_size}
    if host == "ladder":
        encoder = open_encoder(preset.backbone, layers=preset.layers, **encoder_options)
        preset = replace(preset, d_in=encoder.d_in, patch_size=encoder.patch_size)
        ladder = build_ladder(
            preset,
            classes=classes,
            temporal=temporal,
            temporal_layers=temporal_layers,
            image_size=image_size,
            **options,
        )
        return LadderClassifier(encoder, ladder)
    layers = preset.moss_layers if temporal_layers is None else tuple(temporal_layers)
    options = fill_sizes(preset, temporal, options)
    if temporal != "none":
        options = {"zero_init": True, **options}  # the host starts unchanged
    if host == "dist":
        encoder = open_encoder(preset.backbone, layers=None, **encoder_options)
        return DiST(encoder, classes=classes, temporal=_at_layers(layers, temporal, encoder.d_in, options))
    vit: Any = open_vit(preset.backbone, **encoder_options)
    modules = _at_layers(layers, temporal, vit.embed_dim, options)
    host_options: dict[str, Any] = {"name": preset.backbone, "classes": classes, "temporal": modules}
    return FullFineTune(vit, **host_options) if host == "full" else AIM(vit, frames=frames, **host_options)


def _at_layers(
    layers: Sequence[int], temporal: str, dim: int, options: Mapping[str, Any]
) -> dict[int, nn.Module]:
    modules = {layer: build_temporal(temporal, dim, dim, **options) for layer in layers}
    return {layer: module for layer, module in modules.items() if module is not None}


def find_preset(variant: str | LadderPreset) -> LadderPreset:
    """The preset called `variant`: "s", "S" and "MOSS-S" are `presets.MOSS_S`.

    Raises:
        ValueError: no preset has this name.
    """
    return variant if isinstance(variant, LadderPreset) else _presets()[full_variant(variant)]


def full_variant(variant: str) -> str:
    """The one spelling of a preset's name: "s" for "S" and "MOSS-S".

    Raises:
        ValueError: no preset has this name.
    """
    name = variant.lower().replace("-", "_").removeprefix("moss_")
    if name not in (presets_by_name := _presets()):
        raise ValueError(f"unknown variant '{variant}'; choose one of {', '.join(presets_by_name)}")
    return name


def _presets() -> dict[str, LadderPreset]:
    ladders = {name: value for name, value in vars(presets).items() if isinstance(value, LadderPreset)}
    return {name.lower().removeprefix("moss_"): value for name, value in ladders.items()}
