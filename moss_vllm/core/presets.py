"""The paper's models by name, each beside its row of the paper, and the functions that build them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from moss_vllm.core.boundary_presets import BoundaryPreset
from moss_vllm.core.detection_presets import DetectionPreset
from moss_vllm.core.ladder import Ladder
from moss_vllm.core.moss import MOSS
from moss_vllm.core.stss import Window
from moss_vllm.core.temporal import TEMPORAL_MODULES

COMPARED = ("selfy", "atm", "r2plus1d", "factorised_attention", "local_attention")
TEMPORAL_NAMES = ("moss", "stss1", *COMPARED, "none")


@dataclass(frozen=True)
class PaperRow:
    """What the paper prints for a model: parameters and cost of Table 6, top-1 accuracy at 8 frames.

    Args:
        trainable_m: trainable parameters in millions.
        gmacs: multiply-adds of one view in 1e9; the paper calls them FLOPs.
        ssv2: percent on Something-Something V2, 3 views (Table 3).
        ssv1: percent on Something-Something V1 (MOSS-S: Table 4, others: Table 1a); None if not printed.
    """

    trainable_m: float
    gmacs: float
    ssv2: float
    ssv1: float | None


@dataclass(frozen=True)
class LadderPreset:
    """A ladder, its MOSS module and the image encoder beside it; layers are counted from 1.

    Args:
        backbone: the image encoder's name in timm.
        d_in: channels of the image encoder.
        patch_size: side of the image encoder's patches in pixels.
        layers: the image encoder's layers that the ladder taps.
        d_out: width of the ladder.
        heads: attention heads of the ladder.
        moss_layers: layers with a MOSS module, "position k" in Table 7.
        window: (L, U, V).
        d_hidden: channels in which similarity is measured; the paper does not print the number.
        d_similarity: D.
        paper: the paper's numbers for this model; None for a model that the paper does not have.

    Reference: Tables 6 and 7. MOSS-M's `d_hidden`, D and k are chosen to give the cost that Table 6 prints.
    """

    backbone: str
    d_in: int
    patch_size: int
    layers: tuple[int, ...]
    d_out: int
    heads: int
    moss_layers: tuple[int, ...]
    window: Window
    d_hidden: int
    d_similarity: int
    paper: PaperRow | None


CLIP_B = "vit_base_patch16_clip_quickgelu_224.openai"
CLIP_L = "vit_large_patch14_clip_quickgelu_224.openai"

MOSS_S = LadderPreset(
    backbone=CLIP_B,
    d_in=768,
    patch_size=16,
    layers=(2, 4, 6, 8, 10, 12),
    d_out=192,
    heads=3,
    moss_layers=(4,),
    window=(5, 9, 9),
    d_hidden=128,
    d_similarity=64,
    paper=PaperRow(trainable_m=6, gmacs=151, ssv2=70.5, ssv1=60.0),
)
MOSS_B = LadderPreset(
    backbone=CLIP_B,
    d_in=768,
    patch_size=16,
    layers=tuple(range(1, 13)),
    d_out=320,
    heads=5,
    moss_layers=(4,),
    window=(5, 9, 9),
    d_hidden=128,
    d_similarity=64,
    paper=PaperRow(trainable_m=22, gmacs=179, ssv2=71.1, ssv1=61.0),
)
MOSS_M = LadderPreset(
    backbone=CLIP_L,
    d_in=1024,
    patch_size=14,
    layers=tuple(range(2, 25, 2)),
    d_out=320,
    heads=5,
    moss_layers=(8,),
    window=(5, 9, 9),
    d_hidden=256,
    d_similarity=96,
    paper=PaperRow(trainable_m=24, gmacs=707, ssv2=72.0, ssv1=None),
)
MOSS_L = LadderPreset(
    backbone=CLIP_L,
    d_in=1024,
    patch_size=14,
    layers=tuple(range(1, 25)),
    d_out=448,
    heads=7,
    moss_layers=(8,),
    window=(5, 9, 9),
    d_hidden=256,
    d_similarity=96,
    paper=PaperRow(trainable_m=82, gmacs=833, ssv2=72.9, ssv1=63.6),
)
LADDERS = {"MOSS-S": MOSS_S, "MOSS-B": MOSS_B, "MOSS-M": MOSS_M, "MOSS-L": MOSS_L}

# The miniature, which trains on `data/world/actions.py` in a minute of one CPU core. Its encoder has random
# weights, which leave much of the pixels in the tokens: similarities of tokens follow what moves.
MINI_VIT = {"img_size": 84, "patch_size": 14, "embed_dim": 64, "depth": 4, "num_heads": 2}  # timm's names
MINI = LadderPreset(
    backbone="mini_vit",
    d_in=64,
    patch_size=14,
    layers=(2, 4),
    d_out=48,
    heads=2,
    moss_layers=(2,),
    window=(5, 5, 5),
    d_hidden=32,
    d_similarity=16,
    paper=None,
)


@dataclass(frozen=True)
class VideoLLMPreset:
    """MOSS beside VideoLLaMA3's image encoder; its output has as many channels as its input.

    Args:
        d_in: channels of the image encoder.
        after_layer: the encoder layer that it reads, counted from 1.
        orders: the orders summed.
        window: (L, U, V).
        d_hidden: channels in which similarity is measured; the paper does not print the number.
        d_similarity: D.
        d_fuse: channels after the temporal offsets are fused; the paper does not print the number.
        input_fc: whether the FC(F) of Eq. 5 is part of the module.
        paper_added_m: parameters the paper says MOSS adds, in millions.

    Reference: Sec. 4.5.
    """

    d_in: int
    after_layer: int
    orders: tuple[int, ...]
    window: Window
    d_hidden: int
    d_similarity: int
    d_fuse: int
    input_fc: bool
    paper_added_m: float


VIDEO_LLM = VideoLLMPreset(
    d_in=1152,
    after_layer=6,
    orders=(1, 2),
    window=(7, 11, 11),
    d_hidden=256,
    d_similarity=256,
    d_fuse=256,
    input_fc=True,
    paper_added_m=13.7,
)


def build_temporal(name: str, d_in: int, d_out: int, **options: Any) -> nn.Module | None:
    """A module (B, T, H, W, d_in) -> (B, T, H, W, d_out) by name; None for "none".

    Args:
        name: "moss", "stss1" (MOSS of the first order alone), a module of Table 10c, or "none".
        d_in: channels of the input.
        d_out: channels of the output.
        options: keyword arguments of the module, such as `zero_init=True`.

    Raises:
        ValueError: the name is not in `TEMPORAL_NAMES`, "none" comes with options, or "stss1" with orders.
    """
    if name == "none":
        if options:
            raise ValueError(
                f"temporal module 'none' has no options, got {', '.join(options)}; leave them out"
            )
        return None
    if name == "moss":
        return MOSS(d_in, d_out, **options)
    if name == "stss1":
        if "orders" in options:
            raise ValueError(
                f"'stss1' is MOSS of order 1, got orders={options['orders']}; choose 'moss' for them"
            )
        return MOSS(d_in, d_out, orders=(1,), **options)
    if name not in COMPARED:
        raise ValueError(f"unknown temporal module '{name}'; choose one of {', '.join(TEMPORAL_NAMES)}")
    return TEMPORAL_MODULES[name](d_in, d_out, **options)


def fill_sizes(
    preset: LadderPreset | DetectionPreset | BoundaryPreset, temporal: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a temporal module; for "moss" and "stss1", the preset's sizes where they name none."""
    if temporal not in ("moss", "stss1"):
        return dict(options)
    sizes = {"window": preset.window, "d_hidden": preset.d_hidden, "d_similarity": preset.d_similarity}
    return {**sizes, **options}


def build_ladder(
    preset: LadderPreset,
    *,
    classes: int,
    temporal: str = "moss",
    temporal_layers: Sequence[int] | None = None,
    image_size: int = 224,
    **temporal_options: Any,
) -> Ladder:
    """The ladder of a preset, with its MOSS module or another temporal module instead.

    Args:
        preset: one of `MOSS_S`, `MOSS_B`, `MOSS_M`, `MOSS_L`.
        classes: scores of the head.
        temporal: a name for `build_temporal`.
        temporal_layers: layers with such a module, instead of the preset's (Table 10b).
        image_size: side in pixels of the clips for which the position table is learned.
        temporal_options: keyword arguments of the module; for "moss" and "stss1" they replace the preset's.

    Raises:
        ValueError: an unknown `temporal`, options that it does not have, a layer that the ladder does not
            tap, or an image smaller than a patch.
    """
    if image_size < preset.patch_size:
        raise ValueError(f"image_size={image_size} is less than a patch, which is {preset.patch_size} pixels")
    options = fill_sizes(preset, temporal, temporal_options)
    modules = {}
    for layer in preset.moss_layers if temporal_layers is None else temporal_layers:
        module = build_temporal(temporal, preset.d_in, preset.d_out, **options)
        if module is not None:
            modules[layer] = module
    side = image_size // preset.patch_size
    return Ladder(
        preset.d_in,
        preset.d_out,
        heads=preset.heads,
        layers=preset.layers,
        classes=classes,
        patch_size=preset.patch_size,
        grid=(side, side),
        temporal=modules,
    )
