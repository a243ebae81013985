"""The families that `experiments/make_miniature.py` makes a miniature of, and what differs between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/miniature_families.py is a part of make_miniature.py, not a command")

import torch
from miniature_sights import corpus, draw_pictures, first_miniature
from miniature_take_over import take_over
from torch import Tensor

from moss_vllm.vlm.hosts.chat import QWEN25_VL_CHAT
from moss_vllm.vlm.hosts.miniature import add_vision_tokens, build_qwen, build_qwen_processor
from moss_vllm.vlm.hosts.positions import place_by_time, place_in_order
from moss_vllm.vlm.video_llama3 import chat as video_llama3_chat
from moss_vllm.vlm.video_llama3.miniature import MINIATURE_MOSS, build, build_processor, build_tokenizer


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of Video-LLM and how its miniature is pre-trained.

    Args:
        begin: seed -> the model and its processor, before pre-training.
        together: its stages in order; those that are trained side by side in one tuple.
        trains: stage -> beginnings of the names of the parameters that it trains.
        lr: of AdamW; Muon has ten times as much.
        encode, collate: write conversations, as `vlm/video_llama3/chat.py`.
        show: processor and clips -> the inputs of `see`.
        see: the model and those inputs -> the tokens that its language model reads, (tokens, channels).
        place: the model and inputs of its forward -> the inputs with their positions.
        frames, fps: of a clip, beside pictures of one frame.
        protocol, moss: of the record, for the recipe and the evaluation.
    """

    begin: Callable[[int], tuple[Any, Any]]
    together: tuple[tuple[str, ...], ...]
    trains: Mapping[str, tuple[str, ...]]
    lr: float
    encode: Callable[..., dict[str, Tensor]]
    collate: Callable[..., dict[str, Tensor]]
    show: Callable[[Any, list[Any]], dict[str, Tensor]]
    see: Callable[..., Tensor]
    place: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    frames: int
    fps: float
    protocol: Mapping[str, Any]
    moss: Mapping[str, Any]


def _begin_video_llama3(seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    processor = build_processor(build_tokenizer(corpus()))
    torch.manual_seed(seed)
    return build(processor.tokenizer), processor


def _show_to_video_llama3(processor: Any, clips: list[Any]) -> dict[str, Tensor]:
    inputs = processor.video_processor(
        clips, do_resize=False, use_token_compression=False, return_tensors="pt"
    )
    return {
        "pixel_values": inputs["pixel_values_videos"],
        "grid_thw": inputs["video_grid_thw"],
        "merge_sizes": inputs["video_merge_sizes"],
    }


def _see_as_video_llama3(model: Any, **inputs: Tensor) -> Tensor:
    core = model.model
    tokens: Tensor = core.projector(core.vision_model(**inputs).last_hidden_state)
    return tokens


def _begin_qwen2_5_vl(seed: int) -> tuple[Any, Any]:
    first = first_miniature()
    processor = build_qwen_processor(add_vision_tokens(first.processor.tokenizer))
    torch.manual_seed(seed)
    model = build_qwen(processor.tokenizer)
    pictures = draw_pictures(seed)
    take_over(model, first.model, _show_to_video_llama3(first.processor, pictures))
    return model, processor


def _show_to_qwen2_5_vl(processor: Any, clips: list[Any]) -> dict[str, Tensor]:
    inputs = processor.video_processor(clips, do_resize=False, do_sample_frames=False, return_tensors="pt")
    return {"hidden_states": inputs["pixel_values_videos"], "grid_thw": inputs["video_grid_thw"]}


def _see_as_qwen2_5_vl(model: Any, **inputs: Tensor) -> Tensor:
    tokens: Tensor = model.model.visual(**inputs).pooler_output
    return tokens


FAMILIES = {
    "video_llama_3": Family(
        begin=_begin_video_llama3,
        together=(("seeing", "reading"), ("talking",)),
        trains={
            "seeing": ("model.vision_model.", "model.projector."),
            "reading": ("model.language_model.layers.", "model.language_model.norm."),
            "talking": ("model.language_model.", "model.projector."),
        },
        lr=2e-3,
        encode=video_llama3_chat.encode,
        collate=video_llama3_chat.collate,
        show=_show_to_video_llama3,
        see=_see_as_video_llama3,
        place=place_in_order,
        frames=8,
        fps=2.0,
        protocol={"sample_fps": 2.0, "short_side_px": 84, "max_frames": 180, "compress_tokens": False},
        moss=MINIATURE_MOSS,
    ),
    "qwen2_5_vl": Family(
        begin=_begin_qwen2_5_vl,
        together=(("matching",),),
        trains={"matching": ("model.visual.",)},
        lr=1e-3,
        encode=QWEN25_VL_CHAT.encode,
        collate=QWEN25_VL_CHAT.collate,
        show=_show_to_qwen2_5_vl,
        see=_see_as_qwen2_5_vl,
        place=place_by_time,
        frames=16,  # at twice the rate: a step of time has two
        fps=4.0,
        protocol={"sample_fps": 4.0, "short_side_px": 84, "max_frames": 360, "compress_tokens": False},
        moss=MINIATURE_MOSS,
    ),
}
