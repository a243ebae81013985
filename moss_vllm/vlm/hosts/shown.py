"""The tokens of a text and of the video in it, read by a processor with sampling and resizing off."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.hosts.layout import Span


class ShownVideo(NamedTuple):
    """What a processor makes of a video: tokens up to the last placeholder, what closes it, its inputs."""

    start: Tensor
    closing: str
    inputs: dict[str, Tensor]


def show_video(
    processor: Any,
    frames: np.ndarray,
    frame_times_s: Sequence[float],
    text: str,
    *,
    placeholder: int,
    inputs: Sequence[str],
) -> ShownVideo:
    """A video in the place of the video token of a text.

    Args:
        frames: uint8 (T, H, W, 3), of a size that the processor takes as it is.
        placeholder: the token that stands for frames.
        inputs: names of the video's inputs.

    Raises:
        ValueError: what stands behind a video cannot be read without it.
    """
    made = processor(
        text=[text],
        videos=[[frames]],  # nested for SmolVLM of transformers 5.17
        video_metadata=[_metadata(frame_times_s)],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
        **_settled(processor.video_processor),
        **whole_conversation(processor, text),
    )
    ids, tail = made["input_ids"][0], behind_video(processor, text)
    end = int((ids == placeholder).nonzero()[-1]) + 1
    said, own = (_say(processor, some) for some in (ids[end:], read_tokens(processor, tail, [])[0]))
    closing = said[: len(said) - len(own)]
    if not (said.endswith(own) and torch.equal(ids[end:], read_tokens(processor, closing + tail, [])[0])):
        raise ValueError(
            f"{type(processor).__name__} reads what stands behind a video otherwise than alone, so "
            "answers cannot be labelled; use the tokenizer and chat template that the model was released with"
        )
    return ShownVideo(ids[:end], closing, {key: made[key] for key in inputs})


def _settled(video_processor: Any) -> dict[str, bool]:
    """Qwen's video processors of transformers 5.2x ask for a choice about resizing, which is off."""
    asks = getattr(video_processor, "cap_pixels_per_frame", False) is None
    return {"cap_pixels_per_frame": False} if asks else {}


def _metadata(frame_times_s: Sequence[float]) -> VideoMetadata:
    """Times as the frame numbers of a video of 1 frame per second stand in the prompt unchanged.

    Qwen2.5-VL asks how many frames per second are shown: their number over that of the video's frames.
    """
    count = len(frame_times_s)
    span_s = frame_times_s[-1] - frame_times_s[0]
    rate = (count - 1) / span_s if count > 1 else 1.0
    of_the_video: dict[str, Any] = {"total_num_frames": count / rate, "frames_indices": list(frame_times_s)}
    return VideoMetadata(fps=1.0, **of_the_video)


def whole_conversation(processor: Any, text: str) -> dict[str, bool]:
    """How a tokenizer reads a whole conversation: a beginning that the template wrote is not added again."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": not (bos and text.startswith(bos))}


def behind_video(processor: Any, text: str) -> str:
    """The text of the layout from the video on."""
    return text.partition(processor.video_token)[2]


def _say(processor: Any, ids: Tensor) -> str:
    """The text of tokens, without what decoding may leave out or tidy."""
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(processor.tokenizer.decode(ids, **how))


def read_tokens(processor: Any, text: str, answers: Sequence[Span], **how: bool) -> tuple[Tensor, Tensor]:
    """The tokens of a text, and the labels of those that end within an answer.

    Shape:
        (S,), (S,).
    """
    read = processor.tokenizer(text, return_offsets_mapping=True, **{"add_special_tokens": False, **how})
    ids = torch.tensor(read["input_ids"])
    ends = torch.tensor([end for _, end in read["offset_mapping"]])
    spoken = torch.zeros_like(ids, dtype=torch.bool)
    for begin, end in answers:
        spoken |= (begin < ends) & (ends <= end)
    return ids, ids.where(spoken, IGNORED)
