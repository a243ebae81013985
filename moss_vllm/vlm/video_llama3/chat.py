"""A clip and a conversation about it -> model inputs, in VideoLLaMA3's own layout.

    <|im_start|>user
    Time 0.0s:<|video_pad|>...,Time 0.5s:<|video_pad|>...
    Describe what is happening in the video.<|im_end|>
    <|im_start|>assistant
    A man turns left.<|im_end|>

Frames arrive sampled and resized (`video.clip.read_clip`) and carry their real times; the processor neither
samples nor resizes again. Labels cover each answer and its <|im_end|>, nothing else. A conversation without
a clip has no line of times.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import VideoLlama3Processor
from transformers.video_utils import VideoMetadata

from moss_vllm.data.rows import Turn
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.conversation import IGNORED, FrameSize, has_special_token, pad_texts

PER_VIDEO = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
END_OF_TURN = "<|im_end|>"


def encode(
    processor: VideoLlama3Processor, clip: Clip | None, turns: Sequence[Turn], *, compress: bool = True
) -> dict[str, Tensor]:
    """One conversation about one clip, or about none.

    Args:
        processor: a `VideoLlama3Processor`.
        clip: frames with sides that are multiples of patch size times merge size; None for text alone.
        turns: at least one; all answered for training, the last open for generation.
        compress: drop tokens of patches that did not change, as VideoLLaMA3 does by default.

    Shape:
        input_ids, labels: (S,); pixel_values_videos: (P, 3 * patch**2); video_grid_thw: (1, 3);
        video_merge_sizes: (1,); video_compression_mask: (P / merge**2,). Without a clip the first two only.

    Raises:
        ValueError: no turn, an open turn before the last, or a text with a special token.
    """
    if clip is None:
        ids = processor.tokenizer(conversation_text(turns, video_token=None), return_tensors="pt")[
            "input_ids"
        ][0]
        return {"input_ids": ids, "labels": answer_labels(ids, processor.tokenizer)}
    text = conversation_text(turns, video_token=processor.video_token)
    # Given as the frame numbers of a video of 1 frame per second, times stand in the prompt unchanged.
    times = VideoMetadata(len(clip.frames), fps=1.0, frames_indices=clip.frame_times_s.tolist())
    inputs = processor(
        text=[text],
        videos=[clip.frames],
        video_metadata=[times],
        do_resize=False,
        use_token_compression=compress,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0]
    return {
        "input_ids": ids,
        "labels": answer_labels(ids, processor.tokenizer),
        **{key: inputs[key] for key in PER_VIDEO},
    }


def conversation_text(turns: Sequence[Turn], *, video_token: str | None) -> str:
    """The layout above, with one `video_token` where the processor puts times and frames; None: no video."""
    if not turns or any(turn.answer is None for turn in turns[:-1]):
        raise ValueError(f"a conversation needs turns, all but the last answered; got {list(turns)}")
    parts = []
    for index, turn in enumerate(turns):
        for text in (turn.question, turn.answer or ""):
            if has_special_token(text):
                raise ValueError(
                    f"text contains a special token of the chat layout: {text[:200]!r}; "
                    "remove '<|...|>' from the row"
                )
        video = f"{video_token}\n" if index == 0 and video_token else ""
        parts.append(f"<|im_start|>user\n{video}{turn.question.strip()}<|im_end|>\n<|im_start|>assistant\n")
        if turn.answer is not None:
            parts.append(f"{turn.answer.strip()}<|im_end|>\n")
    return "".join(parts)


def text_with_times(
    processor: VideoLlama3Processor, turns: Sequence[Turn], frame_times_s: Sequence[float] | None
) -> str:
    """The text that the processor writes for a clip with these times, with one video token per frame.

    Raises:
        ValueError: as `encode`.
    """
    if frame_times_s is None:
        return conversation_text(turns, video_token=None)
    token = processor.video_token
    frames = ",".join(f"Time {time_s:.1f}s:{token}" for time_s in frame_times_s)
    return conversation_text(turns, video_token=token).replace(token, frames, 1)


def tokens_per_frame(processor: VideoLlama3Processor, height_px: int, width_px: int) -> int:
    """Video tokens of a frame that keeps all of them, without token compression."""
    side_px = processor.video_processor.patch_size * processor.video_processor.merge_size
    return (height_px // side_px) * (width_px // side_px)


def encode_questions(
    processor: VideoLlama3Processor, clip: Clip, questions: Sequence[str], *, compress: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Questions about one clip as `encode` reads each, with one pass of the video through the processor.

    Returns: the tokens of each question's open conversation, which all begin with the same video; and the
    video's inputs.

    Raises: ValueError as `encode`.
    """
    example = encode(processor, clip, [Turn(questions[0])], compress=compress)
    token, ids = processor.video_token, example["input_ids"]
    # The tokenizer never joins a special token with text, so the text behind the last one is encoded alone.
    end = int((ids == placeholder(processor)).nonzero()[-1]) + 1
    texts = [conversation_text([Turn(question)], video_token=token) for question in questions[1:]]
    rests = [torch.tensor(processor.tokenizer(text.split(token, 1)[1])["input_ids"]) for text in texts]
    return [ids, *(torch.cat([ids[:end], rest]) for rest in rests)], {key: example[key] for key in PER_VIDEO}


def count_tokens(
    processor: VideoLlama3Processor,
    turns: Sequence[Turn],
    frame_times_s: Sequence[float] | None,
    height_px: int,
    width_px: int,
) -> tuple[int, int]:
    """How many tokens `encode` makes without compression, and the fewest that compression could leave.

    Args:
        frame_times_s: when the frames are shown; None for a conversation without a clip.

    Raises: ValueError as `encode`.
    """
    words = len(processor.tokenizer(text_with_times(processor, turns, frame_times_s))["input_ids"])
    if frame_times_s is None:
        return words, words
    frame_size(processor).check(height_px, width_px)
    more = tokens_per_frame(processor, height_px, width_px) - 1  # the text has one
    # Compression leaves the first frame whole and at least one token of every other frame.
    return words + len(frame_times_s) * more, words + more


def frame_size(processor: VideoLlama3Processor) -> FrameSize:
    """The sizes of frames that the processor takes as they are."""
    return FrameSize(processor.video_processor.patch_size * processor.video_processor.merge_size)


def frames_per_step(processor: VideoLlama3Processor) -> int:
    """Frames that one step of time has."""
    return 1


def placeholder(processor: VideoLlama3Processor) -> int:
    """The token that stands for frames of a video."""
    return int(processor.tokenizer.convert_tokens_to_ids(processor.video_token))


def lead(processor: VideoLlama3Processor) -> str:
    """What stands between the prompt for an answer and the answer."""
    return ""


def end_of_turn(processor: VideoLlama3Processor) -> str:
    """The text that ends an answer."""
    return END_OF_TURN


def answer_labels(ids: Tensor, tokenizer: Any) -> Tensor:
    """`ids` where the assistant speaks, up to and including <|im_end|>; `IGNORED` elsewhere.

    Shape:
        (S,) -> (S,).
    """
    opening = torch.tensor(tokenizer("<|im_start|>assistant\n")["input_ids"])
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    labels = torch.full_like(ids, IGNORED)
    starts = (ids.unfold(0, len(opening), 1) == opening).all(-1).nonzero().flatten() + len(opening)
    ends = (ids == end).nonzero().flatten()
    for start in starts.tolist():
        stop = ends[ends >= start][:1] + 1
        if len(stop):  # none for the open turn of a prompt
            labels[start : int(stop)] = ids[start : int(stop)]
    return labels


def collate(examples: Sequence[dict[str, Tensor]], *, pad_id: int, left: bool = False) -> dict[str, Tensor]:
    """Pad texts to the longest and concatenate the videos; `left` padding is for generation.

    Shape:
        input_ids, labels, attention_mask: (B, S); the others as in `encode`, one after the other.
    """
    with_video = [example for example in examples if PER_VIDEO[0] in example]
    videos = {key: torch.cat([example[key] for example in with_video]) for key in PER_VIDEO if with_video}
    return pad_texts(examples, pad_id=pad_id, left=left) | videos
