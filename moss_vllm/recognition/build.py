"""Video classifiers by name: the ladder beside a frozen encoder, and the other hosts of Table 10d.

model = build_classifier(variant="s", classes=174)                    # MOSS-S beside CLIP ViT-B/16
model = build_classifier(variant="l", backbone="eva02_clip_l14", classes=48)
model = build_classifier(host="aim", classes=174, temporal="none")    # the baseline
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moss_vllm.core import presets
from moss_vllm.core.ladder import Ladder
from moss_vllm.core.presets import LadderPreset, build_ladder, build_temporal
from moss_vllm.encoders.image import ImageEncoder, full_name, open_encoder, open_vit
from moss_vllm.recognition.hosts.aim import AIM
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.hosts.dist import DiST
from moss_vllm.recognition.hosts.full import FullFineTune

HOSTS = ("ladder", "full", "aim", "dist")


class LadderClassifier(VideoClassifier):
    """The ladder beside a frozen image encoder, which sees each frame alone (Fig. 4).

    Shape:
        (B, T, 3, H', W') -> (B, classes), for any T >= 1 and any whole number of patches.

    Args:
        encoder: hands over the layers that the ladder taps.
        ladder: what is trained.

    Raises:
        ValueError: the two name other layers or patches of another size.
    """

    frozen = r"^encoder\."
    trained = r"^ladder\."
    head_name = "ladder.head"
    temporal_prefix = r"^ladder\.moss\d*\."
    decay_vectors = True  # as the paper's ladders are trained: biases and norms decay too

    def __init__(self, encoder: ImageEncoder, ladder: Ladder) -> None:
        super().__init__(encoder.name, encoder.mean, encoder.std)
        side = ladder.stem.conv.kernel_size[1]
        if encoder.layers != ladder.layers or encoder.patch_size != side:
            raise ValueError(
                f"the encoder hands over layers {encoder.layers} in patches of {encoder.patch_size} pixels, "
                f"the ladder taps layers {ladder.layers} in patches of {side}"
            )
        self.encoder = encoder
        self.ladder = ladder

    def forward(self, video: Tensor) -> Tensor:
        """Score each class; see the class."""
        taps = self.encoder(video.flatten(0, 1))
        return self.ladder([tap.unflatten(0, video.shape[:2]) for tap in taps], video)


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
    """A classifier by name, with MOSS or another temporal module in it, or none.

    Args:
        host: "ladder"; "full" fine-tuning, "aim" or "dist" (Table 10d).
        variant: a preset of the ladder, "s", "b", "m" or "l", or one of your own; the other hosts take from
            it the encoder, the layer of MOSS and its sizes.
        backbone: another image encoder, by a name of `open_encoder`.
        classes: scores of the head.
        temporal: a name of `build_temporal`.
        temporal_layers: layers with such a module, counted from 1, instead of the preset's.
        temporal_options: keyword arguments of the module.
        weights: the image encoder's, see `open_encoder`.
        frames: frames of a clip that tables over time are laid out for; others work too.
        image_size: side of a clip in pixels, likewise.

    Raises:
        ValueError: an unknown name, a layer that the encoder does not have, options the module has not; see
            `open_vit` and `build_temporal`.
        OSError: weights that cannot be downloaded or read.
    """
    if host not in HOSTS:
        raise ValueError(f"unknown host '{host}'; choose one of {', '.join(HOSTS)}")
    preset = find_preset(variant)
    preset = replace(preset, backbone=full_name(preset.backbone if backbone is None else backbone))
    options = dict(temporal_options or {})
    opened: dict[str, Any] = {"weights": weights, "image_size": image_size}
    if host == "ladder":
        encoder = open_encoder(preset.backbone, layers=preset.layers, **opened)
        preset = replace(preset, d_in=encoder.d_in, patch_size=encoder.patch_size)
        where: dict[str, Any] = {
            "temporal": temporal,
            "temporal_layers": temporal_layers,
            "image_size": image_size,
        }
        return LadderClassifier(encoder, build_ladder(preset, classes=classes, **where, **options))
    layers = preset.moss_layers if temporal_layers is None else tuple(temporal_layers)
    if temporal in ("moss", "stss1"):
        sizes = {"window": preset.window, "d_hidden": preset.d_hidden, "d_similarity": preset.d_similarity}
        options = {**sizes, **options}
    if temporal != "none":
        options = {"zero_init": True, **options}  # the host starts unchanged
    if host == "dist":
        encoder = open_encoder(preset.backbone, layers=None, **opened)
        return DiST(encoder, classes=classes, temporal=_at_layers(layers, temporal, encoder.d_in, options))
    vit: Any = open_vit(preset.backbone, **opened)
    modules = _at_layers(layers, temporal, vit.embed_dim, options)
    named: dict[str, Any] = {"name": preset.backbone, "classes": classes, "temporal": modules}
    return FullFineTune(vit, **named) if host == "full" else AIM(vit, frames=frames, **named)


def _at_layers(
    layers: Sequence[int], temporal: str, dim: int, options: Mapping[str, Any]
) -> dict[int, nn.Module]:
    modules = {layer: build_temporal(temporal, dim, dim, **options) for layer in layers}
    return {layer: module for layer, module in modules.items() if module is not None}


def find_preset(variant: str | LadderPreset) -> LadderPreset:
    """The preset called `variant`: "s", "S" and "MOSS-S" are `presets.MOSS_S`.

    Raises:
        ValueError: there is none of this name.
    """
    return variant if isinstance(variant, LadderPreset) else _presets()[full_variant(variant)]


def full_variant(variant: str) -> str:
    """The one spelling of a preset's name: "s" of "S" and "MOSS-S".

    Raises:
        ValueError: there is none of this name.
    """
    wanted = variant.lower().replace("-", "_").removeprefix("moss_")
    if wanted not in (known := _presets()):
        raise ValueError(f"unknown variant '{variant}'; choose one of {', '.join(known)}")
    return wanted


def _presets() -> dict[str, LadderPreset]:
    found = {name: value for name, value in vars(presets).items() if isinstance(value, LadderPreset)}
    return {name.lower().removeprefix("moss_"): value for name, value in found.items()}
