"""VideoMAE by name, with all its weights or none: from the hub, a folder, a file, or random."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEModel

from moss_vllm.encoders.opening import (
    LoadedWeights,
    always_the_same,
    refuse_partial,
    refuse_unreachable,
    weights_file,
)
from moss_vllm.encoders.video import VideoEncoder
from moss_vllm.runtime.quiet import quiet

# Hub id, width, layers and heads by short name: trained on Kinetics-400 without and then with its labels.
VIDEO_ENCODERS = {
    "videomae_s": ("MCG-NJU/videomae-small-finetuned-kinetics", 384, 12, 6),
    "videomae_b": ("MCG-NJU/videomae-base-finetuned-kinetics", 768, 12, 12),
    "videomae_l": ("MCG-NJU/videomae-large-finetuned-kinetics", 1024, 24, 16),
}
# The encoder of `presets.DETECTION_MINI`. It has random weights alone, larger than transformers draws them: a
# token is then more of its pixels than of its place, and similarities of tokens follow what moves.
MINI_VIDEOMAE = "videomae_mini"
MINI_SIZES: dict[str, Any] = {
    "image_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "initializer_range": 0.1,
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # names of transformers' weights on the hub
# What a file of weights may hold beside the layers: classifiers, norms after the last layer, MAE's decoder.
BESIDE_THE_LAYERS = re.compile(
    r"^(videomae\.)?(layernorm|norm|fc_norm|classifier|cls_head|head|decoder|encoder_to_decoder|mask_token|"
    r"pos_embed)(\.|$)"
)
# Names of mmaction2, whose files AdaTAD starts from, and those of transformers.
MMACTION_NAMES = (
    (r"^(backbone|module)\.", ""),
    (r"^patch_embed\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.(q|v)_bias$", r".attention.attention.\1_bias"),
    (r"\.mlp\.layers\.0\.0\.", ".intermediate.dense."),
    (r"\.mlp\.layers\.1\.", ".output.dense."),
)


def open_video_encoder(
    name: str | Path,
    *,
    weights: str | Path = "pretrained",
    revision: str | None = None,
    drop_path: float = 0.1,
    checkpointing: bool = True,
    one_frame: bool = False,
) -> VideoEncoder:
    """A frozen VideoMAE by name.

    Args:
        name: one of `VIDEO_ENCODERS`, "videomae_mini", a hub id, or a folder with config.json and weights as
            transformers saves them, of a classifier or of MAE's pre-training too.
        weights: "pretrained" (of the hub, its local cache, or the folder), "random" (always the same
            numbers), or a .safetensors file with names of transformers or of mmaction2.
        revision: of the hub id.
        drop_path: as in `VideoEncoder`.
        checkpointing: as in `VideoEncoder`.
        one_frame: as in `VideoEncoder`.

    Raises:
        ValueError: a model that is no VideoMAE, weights that are missing, unknown or of another shape, or a
            file that is not .safetensors.
        OSError: weights that cannot be downloaded or read.
    """
    file = weights_file(weights)
    known = (*VIDEO_ENCODERS, MINI_VIDEOMAE)
    if not Path(name).is_dir() and str(name) not in known and str(name).count("/") != 1:
        raise ValueError(
            f"'{name}' is no video encoder; choose one of {', '.join(known)}, a hub id (owner/name) "
            "or a folder with config.json"
        )
    if str(name) == MINI_VIDEOMAE and weights == "pretrained":
        raise ValueError(f"{MINI_VIDEOMAE} was never trained; pass weights 'random' or a file of your own")
    source = VIDEO_ENCODERS[str(name)][0] if str(name) in VIDEO_ENCODERS else str(name)
    fetched = weights == "pretrained" or str(name) not in known
    try:
        if fetched and not Path(source).is_dir():
            refuse_unreachable(source, ("config.json", *WEIGHT_FILES), revision)
        config = _config(str(name), revision)
        native_px: Any = config.image_size
        # transformers (5.23) makes a position table of this size in seconds of Python; ours is another.
        config.image_size = config.patch_size
        if weights == "random":
            model, loaded = always_the_same(lambda: VideoMAEModel(config)), LoadedWeights("random", 0)
        else:
            model, loaded = _with_weights(config, source, file, revision)
    except OSError as error:
        raise OSError(
            f"the video encoder '{name}' could not be opened from {source} or the local cache "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Where there is a network, "
            f"download it: hf download {source} --local-dir FOLDER; and give FOLDER in its place; or pass "
            "weights 'random' to try things out"
        ) from error
    options: dict[str, Any] = {"drop_path": drop_path, "checkpointing": checkpointing, "one_frame": one_frame}
    return VideoEncoder(model, native_px=native_px, name=str(name), loaded=loaded, **options)


def _config(name: str, revision: str | None) -> VideoMAEConfig:
    options: dict[str, Any] = {
        "use_mean_pooling": True,  # no norm after the last layer
        "layer_norm_eps": 1e-6,  # VideoMAE's own; the hub's configs have transformers' default of 1e-12
    }
    if name == MINI_VIDEOMAE:
        return VideoMAEConfig(**MINI_SIZES, **options)
    if name in VIDEO_ENCODERS:
        _, width, depth, heads = VIDEO_ENCODERS[name]
        options |= {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        return VideoMAEConfig(intermediate_size=4 * width, **options)
    found, _ = VideoMAEConfig.get_config_dict(name, revision=revision)
    if not found:  # transformers raises nothing where there is no file
        raise FileNotFoundError(f"{name}: has no config.json")
    if found.get("model_type") != "videomae":
        raise ValueError(f"'{name}' is a model of type {found.get('model_type')!r}; give a VideoMAE")
    config = VideoMAEConfig.from_dict({**found, **options})
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise ValueError(
            f"'{name}' has frames or patches that are not square; give one whose sizes are numbers"
        )
    return config


def _with_weights(
    config: VideoMAEConfig, source: str, file: Path | None, revision: str | None
) -> tuple[VideoMAEModel, LoadedWeights]:
    """The model with all its weights from a file, or else from a folder or the hub."""
    state = None if file is None else _as_in_transformers(load_file(file))
    with quiet():
        opened: Any = VideoMAEModel.from_pretrained(
            None if file else source,
            config=config,
            state_dict=state,
            revision=revision or "main",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
        )
    model, info = opened
    origin = str(file or source) + (f" at {revision}" if revision and not file else "")
    left_out = sorted(name for name in info["unexpected_keys"] if BESIDE_THE_LAYERS.match(name))
    refuse_partial(
        origin,
        {
            "missing": sorted(info["missing_keys"]),
            "unknown": sorted(set(info["unexpected_keys"]) - set(left_out)),
            "of another shape": [
                f"{name} {tuple(found)} for {tuple(expected)}"
                for name, found, expected in sorted(info["mismatched_keys"])
            ],
        },
    )
    return model, LoadedWeights(origin, len(model.state_dict()), tuple(left_out))


def _as_in_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names, where mmaction2's `qkv` is three tensors."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in MMACTION_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith(".attn.qkv.weight"):
            before = name.removesuffix("attn.qkv.weight") + "attention.attention."
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {f"{before}{part}.weight": rows.contiguous() for part, rows in parts}
        else:
            renamed[name] = value
    return renamed
