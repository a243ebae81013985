"""Tiny random Video-LLMs of transformers' own classes, and inputs for them: one per host of MOSS.

Pictures and words are random. What is a real model's are the classes, the order of tokens, and how the tower
is told of clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
GRID = {"depth": 4, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
IMAGE, VIDEO, START, END = 60, 61, 58, 59  # tokens
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
SMALL_MOSS = {"window": (3, 3, 3), "d_hidden": 8, "d_similarity": 8, "d_fuse": 12}
Size = tuple[int, int, int]


@dataclass(frozen=True)
class TinyHost:
    """A tiny model and what to feed it.

    Args:
        name: its model_type.
        build: () -> the model, in eval mode.
        make_inputs: sizes of clips, each alone in a row of the batch -> inputs; pixels from a generator.
        sizes: two clips of different sizes, as the tower sees them: the second is the longer one.
        pixels: name of the input with the pixels.
        mixes: whether clips of different sizes fit in one batch.
    """

    name: str
    build: Callable[[], Any]
    make_inputs: Callable[[Sequence[Size], torch.Generator], dict[str, Any]]
    sizes: tuple[Size, Size]
    pixels: str
    mixes: bool = True


def build(config: Any) -> Any:
    """The model that a config describes, with weights large enough that pixels reach the logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.mul_(3)
            elif "lambda" in name:  # InternVL's layer scale
                weight.fill_(1.0)
    return model.eval()


def words(numbers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows of tokens, padded on the left as for generate."""
    longest = max(map(len, numbers))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in numbers])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in numbers])
    return {"input_ids": ids, "attention_mask": mask}


def grid_inputs(
    sizes: Sequence[Size], generator: torch.Generator, *, per_step: bool = False, frames: int = 2
) -> dict[str, Any]:
    """Inputs of Qwen's layout; with `per_step` each step of time has placeholders of its own."""
    rows = []
    for t, h, w in sizes:
        frame = [VIDEO] * (h * w // 4)
        if per_step:
            video = [token for step in range(t) for token in [10 + step, START, *frame, END]]
        else:
            video = [START, *frame * t, END]
        rows.append([5, *video, 7, 8, 9])
    inputs: dict[str, Any] = words(rows)
    patches = sum(t * h * w for t, h, w in sizes)
    inputs["pixel_values_videos"] = torch.randn(patches, 3 * frames * 4 * 4, generator=generator)
    inputs["video_grid_thw"] = torch.tensor([list(size) for size in sizes])
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == VIDEO).long() * 2
    return inputs


def glm_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """GLM-4V's: frames of image tokens between marks of the video."""
    inputs = grid_inputs(sizes, generator)
    rows = [
        [5, 56, *[token for _ in range(t) for token in [START, *[IMAGE] * (h * w // 4), END]], 57, 7, 8]
        for t, h, w in sizes
    ]
    inputs.update(words(rows))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long() * 2
    return inputs


def video_llama3_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """VideoLLaMA3's: one step per frame, and the size of the merge blocks with each clip."""
    inputs = grid_inputs(sizes, generator, frames=1)
    del inputs["mm_token_type_ids"]
    inputs["video_merge_sizes"] = torch.tensor([2] * len(sizes))
    inputs["video_compression_mask"] = torch.ones(int((inputs["input_ids"] == VIDEO).sum()), dtype=torch.bool)
    return inputs


def frame_inputs(
    sizes: Sequence[Size], generator: torch.Generator, *, token: int, tokens: int, apart: bool = True
) -> dict[str, Any]:
    """Text of frames, each with a number of placeholders; apart from each other, or one after the other."""
    rows = []
    for t, _, _ in sizes:
        frames = [[20 + step, START, *[token] * tokens, END] for step in range(t)]
        video = sum(frames, []) if apart else [token] * (tokens * t)
        rows.append([5, *video, 7, 8, 9])
    return words(rows)


def pictures(sizes: Sequence[Size], generator: torch.Generator, patch: int = 4) -> list[Tensor]:
    """The frames of each clip."""
    return [torch.randn(t, 3, h * patch, w * patch, generator=generator) for t, h, w in sizes]


def internvl_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """InternVL's: all frames of the batch in a row."""
    pixels = torch.cat(pictures(sizes, generator))
    return frame_inputs(sizes, generator, token=IMAGE, tokens=4) | {"pixel_values": pixels}


def smolvlm_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """SmolVLM's: a row of the batch has its frames, filled up with zeros."""
    clips = pictures(sizes, generator)
    pixels = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return frame_inputs(sizes, generator, token=IMAGE, tokens=4) | {"pixel_values": pixels}


def llava_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """LLaVA-OneVision's: clips of one length, and one more token behind each."""
    pixels = torch.stack(pictures(sizes, generator))
    inputs = frame_inputs(sizes, generator, token=VIDEO, tokens=4, apart=False)
    ids = torch.cat([torch.full((len(sizes), 1), VIDEO), inputs["input_ids"]], 1)
    mask = torch.cat([torch.ones(len(sizes), 1).long(), inputs["attention_mask"]], 1)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels}


def perception_inputs(sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
    """Perception-LM's: clips of different lengths as one, and how many frames each has."""
    clips = pictures(sizes, generator)
    inputs = frame_inputs(sizes, generator, token=VIDEO, tokens=4, apart=False)
    lengths = [len(clip) for clip in clips]
    if len(set(lengths)) == 1:
        return inputs | {"pixel_values_videos": torch.stack(clips)}
    return inputs | {"pixel_values_videos": torch.cat(clips)[None], "frames_per_clip": lengths}


def qwen2_vl() -> Any:
    """Qwen2-VL."""
    vision = {**GRID, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    text = {**TEXT, "rope_parameters": ROPE}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **TOKENS)


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL, with windows of 2 x 2 merge blocks and full attention in the last block alone."""
    vision = {**GRID, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 16}
    vision |= {"window_size": 16, "fullatt_block_indexes": [3]}
    text = {**TEXT, "rope_parameters": ROPE}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **TOKENS)


def qwen3_vl() -> Any:
    """Qwen3-VL, with features of block 2 in the language model's first layer."""
    vision = {**GRID, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 16}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [1]}
    text = {**TEXT, "head_dim": 8, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    marks = {"vision_start_token_id": START, "vision_end_token_id": END}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS, **marks)


def glm4v() -> Any:
    """GLM-4V."""
    vision = {**GRID, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 16, "image_size": 24}
    text = {**TEXT, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
    marks = {"image_start_token_id": START, "image_end_token_id": END}
    marks |= {"video_start_token_id": 56, "video_end_token_id": 57}
    return transformers.Glm4vConfig(text_config=text, vision_config=vision, **TOKENS, **marks)


def video_llama_3() -> Any:
    """VideoLLaMA3."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision |= {"patch_size": 4}
    text = {**TEXT, "model_type": "qwen2"}
    return transformers.VideoLlama3Config(text_config=text, vision_config=vision, **TOKENS)


VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
VIT |= {"patch_size": 4, "image_size": 16}


def internvl() -> Any:
    """InternVL3."""
    vision = {**VIT, "patch_size": [4, 4], "image_size": [16, 16]}
    text = {**TEXT, "model_type": "qwen2"}
    settings = {"image_token_id": IMAGE, "image_seq_length": 4}
    return transformers.InternVLConfig(text_config=text, vision_config=vision, **settings)


def smolvlm() -> Any:
    """SmolVLM2."""
    text = {**TEXT, "model_type": "llama"}
    settings = {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0}
    return transformers.SmolVLMConfig(text_config=text, vision_config=VIT, **settings)


def llava_onevision() -> Any:
    """LLaVA-OneVision."""
    vision = {**VIT, "model_type": "siglip_vision_model", "vision_use_head": False}
    text = {**TEXT, "model_type": "qwen2"}
    settings = {"image_token_index": IMAGE, "video_token_index": VIDEO, "image_grid_pinpoints": [[16, 16]]}
    return transformers.LlavaOnevisionConfig(text_config=text, vision_config=vision, **settings)


def perception_lm() -> Any:
    """Perception-LM."""
    arguments = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": [16, 16], "patch_size": 4}
    arguments |= {"global_pool": "", "use_post_transformer_norm": False, "ref_feat_shape": [4, 4]}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336"}
    vision |= {"model_args": arguments, "do_pooling": False}
    text = {**TEXT, "model_type": "llama"}
    settings = {"vision_use_cls_token": True, "projector_pooling_ratio": 2, **TOKENS}
    return transformers.PerceptionLMConfig(text_config=text, vision_config=vision, **settings)


BY_GRID = ((3, 4, 8), (4, 8, 4))
BY_FRAME = ((3, 4, 4), (5, 4, 4))


def _tiny(config: Callable[[], Any], inputs: Any, sizes: Any, pixels: str, **settings: Any) -> TinyHost:
    return TinyHost(config.__name__, lambda: build(config()), inputs, sizes, pixels, **settings)


TINY_HOSTS = (
    _tiny(qwen2_5_vl, grid_inputs, BY_GRID, "pixel_values_videos"),
    _tiny(qwen3_vl, lambda s, g: grid_inputs(s, g, per_step=True), BY_GRID, "pixel_values_videos"),
    _tiny(smolvlm, smolvlm_inputs, BY_FRAME, "pixel_values"),
    _tiny(qwen2_vl, grid_inputs, BY_GRID, "pixel_values_videos"),
    _tiny(glm4v, glm_inputs, BY_GRID, "pixel_values_videos"),
    _tiny(internvl, internvl_inputs, BY_FRAME, "pixel_values"),
    _tiny(llava_onevision, llava_inputs, BY_FRAME, "pixel_values_videos", mixes=False),
    _tiny(perception_lm, perception_inputs, BY_FRAME, "pixel_values_videos"),
    _tiny(video_llama_3, video_llama3_inputs, BY_GRID, "pixel_values_videos"),
)


if __name__ == "__main__":
    raise SystemExit("experiments/tiny_hosts.py is a part of other commands, not a command")
