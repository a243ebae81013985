"""A clip and a conversation about it -> model inputs, for the hosts of MOSS, in each one's own layout.

The layout is the processor's chat template, and its processor puts the frames in, sampling and resizing
switched off: frames arrive as `video.clip.read_clip` gives them, with their real times. Labels cover each
answer and what ends its turn (layout.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moss_vllm.data.rows import Turn
from moss_vllm.video.clip import Clip
from moss_vllm.video.frames import FrameSize
from moss_vllm.vlm.conversation import IGNORED, pad_texts
from moss_vllm.vlm.hosts.layout import Layout
from moss_vllm.vlm.hosts.shown import ShownVideo, behind_video, read_tokens, show_video, whole_conversation

Videos = list[dict[str, Tensor]]


def _join(videos: Videos) -> dict[str, Tensor]:
    return {key: torch.cat([video[key] for video in videos]) for key in videos[0]}


@dataclass(frozen=True, eq=False)
class HostChat:
    """The conversations of a family, read and written by its processor.

    Args:
        video_inputs: names of the inputs that an example has only with a video; the first holds the pixels.
        placeholder_id: attribute of the processor with the token that stands for frames.
        frame_size: processor -> the sizes of frames that it takes as they are.
        small_px: processor -> side of the smallest frames that its text can be measured with.
        tells_times: whether the text of a video tells when its frames are shown.
        join: the video inputs of clips, in order -> those of their batch.
        layout: how its chat template writes answers.
    """

    video_inputs: tuple[str, ...]
    placeholder_id: str
    frame_size: Callable[[Any], FrameSize]
    small_px: Callable[[Any], int]
    tells_times: bool = False
    join: Callable[[Videos], dict[str, Tensor]] = _join
    layout: Layout = Layout()

    def frames_per_step(self, processor: Any) -> int:
        """Frames that one step of time has."""
        return int(getattr(processor.video_processor, "temporal_patch_size", 1))

    def placeholder(self, processor: Any) -> int:
        """The token that stands for frames of a video."""
        return int(getattr(processor, self.placeholder_id))

    def encode(
        self, processor: Any, clip: Clip | None, turns: Sequence[Turn], *, compress: bool = False
    ) -> dict[str, Tensor]:
        """One conversation about one clip, or about none.

        Args:
            processor: of this family.
            clip: frames of a size that `frame_size` allows; None for text alone.
            turns: at least one; all answered for training, the last open for generation.
            compress: VideoLLaMA3 alone can.

        Shape:
            input_ids, labels: (S,); `video_inputs` as the processor gives them for one clip. Without a clip
            the first two only.

        Raises:
            ValueError: no turn, an open turn before the last, a text with a special token, frames of another
                size, compress, or a template or tokenizer that labels cannot be found for.
        """
        _refuse_compression(compress)
        text, answers = self.layout.write(processor, turns, video=clip is not None)
        if clip is None:
            ids, labels = read_tokens(processor, text, answers, **whole_conversation(processor, text))
            return {"input_ids": ids, "labels": labels}
        self.frame_size(processor).check(*clip.frames.shape[1:3])
        shown = self.show(processor, clip, text)
        tail = behind_video(processor, text)
        shift = len(shown.closing) + len(tail) - len(text)
        moved = [(begin + shift, end + shift) for begin, end in answers]
        ids, labels = read_tokens(processor, shown.closing + tail, moved)
        return {
            "input_ids": torch.cat([shown.start, ids]),
            "labels": torch.cat([torch.full_like(shown.start, IGNORED), labels]),
            **shown.inputs,
        }

    def encode_questions(
        self, processor: Any, clip: Clip, questions: Sequence[str], *, compress: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Questions about one clip as `encode` reads each, with one pass of the video through the processor.

        Returns: the tokens of each question's open conversation, which all begin with the same video; and
        the video's inputs.

        Raises: ValueError as `encode`.
        """
        _refuse_compression(compress)
        texts = [self.layout.write(processor, [Turn(question)], video=True)[0] for question in questions]
        self.frame_size(processor).check(*clip.frames.shape[1:3])
        shown = self.show(processor, clip, texts[0])
        rests = [
            read_tokens(processor, shown.closing + behind_video(processor, text), [])[0] for text in texts
        ]
        return [torch.cat([shown.start, rest]) for rest in rests], shown.inputs

    def count_tokens(
        self,
        processor: Any,
        turns: Sequence[Turn],
        frame_times_s: Sequence[float] | None,
        height_px: int,
        width_px: int,
    ) -> tuple[int, int]:
        """How many tokens `encode` makes, and the fewest that compression could leave: here as many.

        Args:
            frame_times_s: when the frames are shown; None for a conversation without a clip.

        Raises: ValueError as `encode`.
        """
        text, _ = self.layout.write(processor, turns, video=frame_times_s is not None)
        if frame_times_s is None:
            tokens = len(processor.tokenizer(text, **whole_conversation(processor, text))["input_ids"])
            return tokens, tokens
        self.frame_size(processor).check(height_px, width_px)
        times_s = frame_times_s if self.tells_times else range(len(frame_times_s))
        start, closing = _measure_video(self, processor, tuple(float(time_s) for time_s in times_s))
        tail = behind_video(processor, text)
        words = len(processor.tokenizer(closing + tail, add_special_tokens=False)["input_ids"])
        small_px, steps = self.small_px(processor), -(-len(frame_times_s) // self.frames_per_step(processor))
        more = _step_tokens(self, processor, height_px, width_px)
        more -= _step_tokens(self, processor, small_px, small_px)
        tokens = start + steps * more + words
        return tokens, tokens

    def show(self, processor: Any, clip: Clip, text: str) -> ShownVideo:
        """A clip of any size in the place of the video token of a text that `layout` wrote."""
        token, times_s = self.placeholder(processor), clip.frame_times_s.tolist()
        return show_video(processor, clip.frames, times_s, text, placeholder=token, inputs=self.video_inputs)

    def lead(self, processor: Any) -> str:
        """What stands between the prompt for an answer and the answer: a space in SmolVLM, else nothing."""
        return self.layout.around_answer(processor)[0]

    def end_of_turn(self, processor: Any) -> str:
        """The text that ends an answer, such as <|im_end|>."""
        return self.layout.around_answer(processor)[1]

    def collate(
        self, examples: Sequence[dict[str, Tensor]], *, pad_id: int, left: bool = False
    ) -> dict[str, Tensor]:
        """Pad texts to the longest and join the videos; `left` padding is for generation.

        Shape:
            input_ids, labels, attention_mask: (B, S); the others as the model takes them for several clips.

        Raises: ValueError for clips that the model does not take together.
        """
        shown = [example for example in examples if self.video_inputs[0] in example]
        videos = [{key: example[key] for key in self.video_inputs} for example in shown]
        return pad_texts(examples, pad_id=pad_id, left=left) | (self.join(videos) if videos else {})


@lru_cache(maxsize=4096)
def _measure_video(chat: HostChat, processor: Any, frame_times_s: tuple[float, ...]) -> tuple[int, str]:
    """Tokens up to the last of a video of the smallest frames at these times, and what closes it."""
    shown = _show_black(chat, processor, frame_times_s, chat.small_px(processor), chat.small_px(processor))
    return len(shown.start), shown.closing


@lru_cache(maxsize=4096)
def _step_tokens(chat: HostChat, processor: Any, height_px: int, width_px: int) -> int:
    """Placeholders of a video of one step of time."""
    times_s = range(chat.frames_per_step(processor))
    shown = _show_black(chat, processor, times_s, height_px, width_px)
    return int((shown.start == chat.placeholder(processor)).sum())


def _show_black(
    chat: HostChat, processor: Any, frame_times_s: Sequence[float], height_px: int, width_px: int
) -> ShownVideo:
    frames = np.zeros((len(frame_times_s), height_px, width_px, 3), np.uint8)
    text, _ = chat.layout.write(processor, [Turn("?")], video=True)
    return chat.show(processor, Clip(frames, np.array(frame_times_s, np.float64)), text)


def _refuse_compression(compress: bool) -> None:
    if compress:
        raise ValueError("compress=True: VideoLLaMA3 alone can drop tokens of a video; pass compress=False")


def _merge_blocks(processor: Any) -> FrameSize:
    video = processor.video_processor
    return FrameSize(video.patch_size * video.merge_size)


def _merge_block_px(processor: Any) -> int:
    return _merge_blocks(processor).multiple_px


def _video_square(processor: Any) -> FrameSize:
    side_px = int(processor.video_processor.size["height"])
    return FrameSize(side_px, side_px)


def _smolvlm_square(processor: Any) -> FrameSize:
    side_px = processor.video_processor.max_image_size["longest_edge"]
    return FrameSize(side_px, side_px)


def _any_px(processor: Any) -> int:
    """The text has as many placeholders for a frame of any size."""
    return 8


def _pooled_px(processor: Any) -> int:
    return int(processor.patch_size * processor.pooling_ratio)


def _pad_frames(videos: Videos) -> dict[str, Tensor]:
    """Fill shorter clips up with frames of zeros, which the model leaves out.

    Shape:
        (1, F, ...) each -> (B, F, ...).
    """
    return {key: pad_sequence([video[key][0] for video in videos], batch_first=True) for key in videos[0]}


def _join_equal(videos: Videos) -> dict[str, Tensor]:
    counts = [video["pixel_values_videos"].shape[1] for video in videos]
    if len(set(counts)) > 1:
        raise ValueError(
            f"clips of {counts} frames in a batch; LLaVA-OneVision takes clips of one length together: make "
            "batches of one clip"
        )
    return _join(videos)


def _join_in_a_row(videos: Videos) -> dict[str, Tensor]:
    """Clips of one length as they are; others as one, with the frames of each.

    Shape:
        (1, F, ...) each -> (B, F, ...), or (1, sum of F, ...) and frames_per_clip (B,).
    """
    pixels = [video["pixel_values_videos"] for video in videos]
    counts = torch.tensor([clip.shape[1] for clip in pixels])
    if len(counts.unique()) == 1:
        return _join(videos)
    return {"pixel_values_videos": torch.cat(pixels, 1), "frames_per_clip": counts}


QWEN2_VL_CHAT = HostChat(
    video_inputs=("pixel_values_videos", "video_grid_thw"),
    placeholder_id="video_token_id",
    frame_size=_merge_blocks,
    small_px=_merge_block_px,
)
QWEN25_VL_CHAT = HostChat(
    video_inputs=("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
    placeholder_id="video_token_id",
    frame_size=_merge_blocks,
    small_px=_merge_block_px,
)
QWEN3_VL_CHAT = HostChat(
    video_inputs=("pixel_values_videos", "video_grid_thw"),
    placeholder_id="video_token_id",
    frame_size=_merge_blocks,
    small_px=_merge_block_px,
    tells_times=True,
)
SMOLVLM_CHAT = HostChat(
    video_inputs=("pixel_values", "pixel_attention_mask"),
    placeholder_id="image_token_id",
    frame_size=_smolvlm_square,
    small_px=_any_px,
    tells_times=True,
    join=_pad_frames,
)
GLM4V_CHAT = HostChat(
    video_inputs=("pixel_values_videos", "video_grid_thw"),
    placeholder_id="image_token_id",
    frame_size=_merge_blocks,
    small_px=_merge_block_px,
    tells_times=True,
    layout=Layout(answers_in_parts=False, next_turn="<|user|>"),
)
INTERNVL_CHAT = HostChat(
    video_inputs=("pixel_values",),
    placeholder_id="image_token_id",
    frame_size=_video_square,
    small_px=_any_px,
)
LLAVA_ONEVISION_CHAT = HostChat(
    video_inputs=("pixel_values_videos",),
    placeholder_id="video_token_id",
    frame_size=_video_square,
    small_px=_any_px,
    join=_join_equal,
    # Its template has a space in answered turns that its prompt for an answer has not.
    layout=Layout(respelled=("<|im_start|>assistant \n", "<|im_start|>assistant\n")),
)
PERCEPTION_LM_CHAT = HostChat(
    video_inputs=("pixel_values_videos",),
    placeholder_id="video_token_id",
    frame_size=_video_square,
    small_px=_pooled_px,
    join=_join_in_a_row,
)
