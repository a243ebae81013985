"""Hosts whose tower sees frames in a row and no clips: InternVL3, SmolVLM2, LLaVA-OneVision, Perception-LM.

Their stream is (F, H*W, C), with a class token first in two of them.
"""

from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from transformers import __version__ as transformers_version

from moss_vllm.vlm.hosts.host import Call, Host, Size, frame_sizes, two_sides, with_first, without_first


def frames_by_pixels(tower: Any, call: Call, patch_size: str = "config.patch_size") -> list[Size]:
    """Rows and columns from the size of the pictures; `patch_size` is where the tower has that of a patch."""
    frames, _, height, width = call["pixel_values"].shape
    rows, columns = two_sides(attrgetter(patch_size)(tower))
    return frame_sizes(tower, frames, height // rows, width // columns)


def frames_in_text(model: Any, call: Call, told: Any) -> Any:
    """InternVL: what stands in a row of text is one clip, but for images of several tiles.

    A frame is a run of placeholders, and an image of n tiles a run n times as long.
    """
    ids, pixels = call.get("input_ids"), call.get("pixel_values")
    ids = call.get("inputs") if ids is None else ids
    if told is not None or pixels is None:
        return told
    if ids is None:
        raise ValueError(
            "InternVL3 with MOSS finds the clips among the frames in input_ids, and there are none; give "
            "frames_per_clip, the frames of every clip of the batch in order"
        )
    inner = getattr(model, "model", model)
    rows, columns = two_sides(inner.config.vision_config.patch_size)
    cells = (pixels.shape[-2] // rows) * (pixels.shape[-1] // columns)
    length = round(cells * inner.config.downsample_ratio**2)
    found: list[int] = []
    for row in (ids == inner.config.image_token_id).tolist():
        runs = [len(run) // length for run in "".join(" x"[token] for token in row).split()]
        for index, tiles in enumerate(runs):
            if tiles > 1 or index == 0 or runs[index - 1] > 1:
                found.extend([1] * tiles)
            else:
                found[-1] += 1
    return found


def real_frames(model: Any, call: Call, told: Any) -> Any:
    """SmolVLM: the frames of a row of the batch are one clip; a picture of zeros fills a shorter row up."""
    pixels = call["pixel_values"]
    if told is not None:
        return told
    real = (pixels != 0).flatten(2).any(2).sum(1).tolist()
    return [frames for frames in real if frames] or [1]


def stacked_video(model: Any, call: Call, told: Any) -> Any:
    """LLaVA-OneVision: (B, T, ...) are B clips of T frames."""
    pixels = call.get("pixel_values_videos", call.get("pixel_values"))  # the second up to transformers 5.17
    clips, frames = pixels.shape[:2]
    return [frames] * clips


def images(model: Any, call: Call, told: Any) -> Any:
    """All that comes is images."""
    return None


def video_of_call(model: Any, call: Call, told: Any) -> Any:
    """Perception-LM encodes images and videos by one method: which tensor is the video, and its clips."""
    return {"video": call.get("pixel_values_videos"), "frames": told}


def video_or_images(model: Any, call: Call, told: Any) -> Any:
    """Perception-LM: (B, T, ...) are B clips of T frames if they are the video, or else images in tiles."""
    pixels = call["pixel_values"]
    if not isinstance(told, dict) or pixels is not told["video"]:
        return None
    return [pixels.shape[1]] * pixels.shape[0] if told["frames"] is None else told["frames"]


def smolvlm_is_broken(model: nn.Module) -> str | None:
    """The version of transformers whose SmolVLM cannot run."""
    if transformers_version != "5.20.2":
        return None
    return (
        "transformers 5.20.2 takes SmolVLM's patch size for the number of tokens of a frame, and fails on "
        "most clips; install another version from 5.17 on"
    )


def reads_another_layer(model: Any, layers: tuple[Any, ...] = (-1,)) -> str | None:
    """A config whose projector reads another layer of the tower than the entry was written for."""
    layer = model.config.vision_feature_layer
    return None if layer in layers else f"vision_feature_layer={layer} in its config is not tried, -1 is"


def has_other_tokens(model: Any) -> str | None:
    """A timm model that is not a ViT with at most a class token first."""
    timm_model: Any = model.model.vision_tower.timm_model
    first = getattr(timm_model, "num_prefix_tokens", None)
    if first == int(model.config.vision_use_cls_token) and hasattr(timm_model, "blocks"):
        return None
    return f"its timm model {type(timm_model).__name__} is no ViT with at most a class token"


MOST_LAYERS = 200  # of a timm ViT, which would be built of any number


FRAME_ENTRY: dict[str, Any] = {
    "tower": "model.vision_tower",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
    "projector": r"model\.multi_modal_projector",
    "trained_after": ("post_layernorm.",),
    "width": lambda tower: tower.config.hidden_size,
    "sizes": frames_by_pixels,
    "to_raster": without_first,
    "from_raster": partial(with_first, first=0),
    "takes_frames_per_clip": True,
}
INTERNVL = Host(
    **{
        **FRAME_ENTRY,
        "blocks": "encoder.layer",
        "norm": "layernorm",
        "trained_after": ("layernorm.",),
        "from_raster": partial(with_first, first=1),
    },
    title="InternVL3",
    model_types=("internvl",),
    tower_class="InternVLVisionModel",
    tells={"forward": frames_in_text, "generate": frames_in_text},
    refused=reads_another_layer,
)
SMOLVLM = Host(
    **{**FRAME_ENTRY, "tower": "model.vision_model", "projector": r"model\.connector"},
    title="SmolVLM2",
    model_types=("smolvlm",),
    tower_class="SmolVLMVisionTransformer",
    tells={"get_image_features": real_frames},
    refused=smolvlm_is_broken,
)
LLAVA_ONEVISION = Host(
    **{**FRAME_ENTRY, "takes_frames_per_clip": False},
    title="LLaVA-OneVision",
    model_types=("llava_onevision",),
    tower_class="SiglipVisionModel",
    tells={"get_video_features": stacked_video, "get_image_features": images},
    adds_to_hidden_state=True,
    refused=reads_another_layer,
)


def _perception_raster(tower: Any, raster: Tensor, sizes: list[Size], call: Call) -> Tensor:
    return with_first(tower, raster, sizes, call, tower.timm_model.num_prefix_tokens)


def _perception_layers(config: Any) -> int:
    depth = (config.vision_config.model_args or {}).get("depth")
    if type(depth) is not int or not 1 <= depth <= MOST_LAYERS:
        raise ValueError(
            f"config.json: vision_config.model_args.depth={depth!r:.100} of this Perception-LM is no number "
            f"of layers from 1 to {MOST_LAYERS}; fetch it again"
        )
    return depth


PERCEPTION_LM = Host(
    **{
        **FRAME_ENTRY,
        "blocks": "timm_model.blocks",
        "norm": "timm_model.norm",
        "trained_after": ("timm_model.norm.",),
        "width": lambda tower: tower.timm_model.embed_dim,
        "layers": _perception_layers,
        "sizes": partial(frames_by_pixels, patch_size="timm_model.patch_embed.patch_size"),
        "from_raster": _perception_raster,
    },
    title="Perception-LM",
    model_types=("perception_lm",),
    tower_class="TimmWrapperModel",
    tells={"forward": video_of_call, "get_image_features": video_or_images},
    refused=has_other_tokens,
)
