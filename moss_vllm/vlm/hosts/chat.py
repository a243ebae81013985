"""A clip and a conversation about it -> model inputs, for the hosts of MOSS, in each one's own layout.

The layout is the processor's chat template, and its processor puts the frames in, sampling and resizing
switched off: frames arrive as `video.clip.read_clip` gives them, with their real times. Labels cover each
answer and what ends its turn. What they are is measured by rendering a conversation up to an answer and with
it; a template for which the first is not the beginning of the second is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from moss_vllm.data.rows import Turn
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.conversation import IGNORED, FrameSize, has_special_token, pad_texts

MEASURED = Turn("?", "answer")  # the conversation that a layout is measured with
Span = tuple[int, int]  # of characters


@dataclass(frozen=True, eq=False)
class HostChat:
    """The conversations of a family, read and written by its processor.

    Args:
        video_inputs: names of the inputs that an example has only with a video; the first holds the pixels.
        placeholder_id: attribute of the processor with the token that stands for frames.
        frame_size: processor -> the sizes of frames that it takes as they are.
        small_px: processor -> side of the smallest frames that its text can be measured with.
        tells_times: whether the text of a video tells when its frames are shown.
        join: the values of an input of a batch's clips -> the batch's.
    """

    video_inputs: tuple[str, ...]
    placeholder_id: str
    frame_size: Callable[[Any], FrameSize]
    small_px: Callable[[Any], int]
    tells_times: bool = False
    join: Callable[[Sequence[Tensor]], Tensor] = torch.cat

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
        text, answers = _lay_out(processor, turns, video=clip is not None)
        if clip is None:
            ids, labels = _read(processor, text, answers, **_whole(processor, text))
            return {"input_ids": ids, "labels": labels}
        shown = self._show(processor, clip, text)
        tail = _behind_video(processor, text)
        shift = len(shown.closing) + len(tail) - len(text)
        moved = [(begin + shift, end + shift) for begin, end in answers]
        ids, labels = _read(processor, shown.closing + tail, moved)
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
        texts = [_lay_out(processor, [Turn(question)], video=True)[0] for question in questions]
        shown = self._show(processor, clip, texts[0])
        rests = [_read(processor, shown.closing + _behind_video(processor, text), [])[0] for text in texts]
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
        text, _ = _lay_out(processor, turns, video=frame_times_s is not None)
        if frame_times_s is None:
            tokens = len(processor.tokenizer(text, **_whole(processor, text))["input_ids"])
            return tokens, tokens
        self.frame_size(processor).check(height_px, width_px)
        times_s = frame_times_s if self.tells_times else range(len(frame_times_s))
        start, closing = _measure_video(self, processor, tuple(float(time_s) for time_s in times_s))
        tail = _behind_video(processor, text)
        words = len(processor.tokenizer(closing + tail, add_special_tokens=False)["input_ids"])
        small_px, steps = self.small_px(processor), -(-len(frame_times_s) // self.frames_per_step(processor))
        more = _step_tokens(self, processor, height_px, width_px)
        more -= _step_tokens(self, processor, small_px, small_px)
        return (tokens := start + steps * more + words), tokens

    def _show(self, processor: Any, clip: Clip, text: str) -> "_Shown":
        self.frame_size(processor).check(*clip.frames.shape[1:3])
        return _show(self, processor, clip.frames, clip.frame_times_s.tolist(), text)

    def lead(self, processor: Any) -> str:
        """What stands between the prompt for an answer and the answer: a space in SmolVLM, else nothing."""
        return _around_answer(processor)[0]

    def end_of_turn(self, processor: Any) -> str:
        """The text that ends an answer, such as <|im_end|>."""
        return _around_answer(processor)[1]

    def collate(
        self, examples: Sequence[dict[str, Tensor]], *, pad_id: int, left: bool = False
    ) -> dict[str, Tensor]:
        """Pad texts to the longest and join the videos; `left` padding is for generation.

        Shape:
            input_ids, labels, attention_mask: (B, S); the others as the model takes them for several clips.

        Raises: ValueError for clips that the model does not take together.
        """
        shown = [example for example in examples if self.video_inputs[0] in example]
        videos = {key: self.join([example[key] for example in shown]) for key in self.video_inputs if shown}
        return pad_texts(examples, pad_id=pad_id, left=left) | videos


class _Shown(NamedTuple):
    """What a processor makes of a video: tokens up to the last placeholder, what closes it, its inputs."""

    start: Tensor
    closing: str
    inputs: dict[str, Tensor]


def _show(
    chat: HostChat, processor: Any, frames: np.ndarray, frame_times_s: Sequence[float], text: str
) -> _Shown:
    """Raises ValueError where what stands behind a video cannot be read without it."""
    inputs = processor(
        text=[text],
        videos=[frames],
        video_metadata=[_metadata(frame_times_s)],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
        **_whole(processor, text),
    )
    ids, tail = inputs["input_ids"][0], _behind_video(processor, text)
    end = int((ids == chat.placeholder(processor)).nonzero()[-1]) + 1
    said, own = (_say(processor, some) for some in (ids[end:], _read(processor, tail, [])[0]))
    closing = said[: len(said) - len(own)]
    if not (said.endswith(own) and torch.equal(ids[end:], _read(processor, closing + tail, [])[0])):
        raise ValueError(
            f"{_name(processor)} reads what stands behind a video otherwise than alone, so answers cannot be "
            "labelled; use the tokenizer and chat template that the model was released with"
        )
    return _Shown(ids[:end], closing, {key: inputs[key] for key in chat.video_inputs})


def _metadata(frame_times_s: Sequence[float]) -> VideoMetadata:
    """Times as the frame numbers of a video of 1 frame per second stand in the prompt unchanged.

    Qwen2.5-VL asks how many frames per second are shown: their number over that of the video's frames.
    """
    count = len(frame_times_s)
    span_s = frame_times_s[-1] - frame_times_s[0]
    rate: Any = (count - 1) / span_s if count > 1 else 1.0
    return VideoMetadata(count / rate, fps=1.0, frames_indices=list(frame_times_s))


def _whole(processor: Any, text: str) -> dict[str, bool]:
    """How a tokenizer reads a whole conversation: a beginning that the template wrote is not added again."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": not (bos and text.startswith(bos))}


def _behind_video(processor: Any, text: str) -> str:
    return text.partition(processor.video_token)[2]


def _say(processor: Any, ids: Tensor) -> str:
    """The text of tokens, without what decoding may leave out or tidy."""
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(processor.tokenizer.decode(ids, **how))


def _read(processor: Any, text: str, answers: Sequence[Span], **how: bool) -> tuple[Tensor, Tensor]:
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


def _lay_out(processor: Any, turns: Sequence[Turn], *, video: bool) -> tuple[str, list[Span]]:
    """The text of a conversation, with one video token where the video goes, and where its answers stand.

    Raises:
        ValueError: as `HostChat.encode`.
    """
    if not turns or any(turn.answer is None for turn in turns[:-1]):
        raise ValueError(f"a conversation needs turns, all but the last answered; got {list(turns)}")
    for turn in turns:
        for said in (turn.question, turn.answer or ""):
            _refuse_special_tokens(processor, said)
    whole, answers = _render(processor, turns, video), []
    for index, turn in enumerate(turns):
        if turn.answer is None:
            continue
        before = _render(processor, [*turns[:index], Turn(turn.question)], video)
        after = whole if index + 1 == len(turns) else _render(processor, turns[: index + 1], video)
        if not (whole.startswith(after) and after.startswith(before)):
            raise ValueError(_writes(processor, "an answered turn otherwise than the prompt for its answer"))
        if not after[len(before) :].lstrip().startswith(turn.answer.strip()):
            raise ValueError(_writes(processor, f"{after[len(before) :][:80]!r} for an answer"))
        answers.append((len(before), len(after.rstrip())))
    return whole, answers


def _writes(processor: Any, what: str) -> str:
    return (
        f"the chat template of {_name(processor)} writes {what}, as those of models that think do; open a "
        "model, or a chat template, that answers at once"
    )


def _render(processor: Any, turns: Sequence[Turn], video: bool) -> str:
    """The template's text, with the prompt for an answer if the last turn is open."""
    messages = []
    for index, turn in enumerate(turns):
        said: list[dict[str, str]] = [{"type": "text", "text": turn.question.strip()}]
        shown = [{"type": "video"}] if video and index == 0 else []
        messages.append({"role": "user", "content": shown + said})
        if turn.answer is not None:
            said = [{"type": "text", "text": turn.answer.strip()}]
            messages.append({"role": "assistant", "content": said})
    opened = turns[-1].answer is None
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))


def _refuse_special_tokens(processor: Any, text: str) -> None:
    if has_special_token(text) or any(token in text for token in _special_tokens(processor)):
        raise ValueError(
            f"text contains a special token of the chat layout: {text[:200]!r}; remove it from the row"
        )


@lru_cache(maxsize=16)
def _special_tokens(processor: Any) -> frozenset[str]:
    """What the tokenizer reads as one token wherever it stands, and what the processor puts frames for."""
    own = {getattr(processor, name, None) for name in ("video_token", "image_token")} - {None}
    return frozenset(token for token in own.union(processor.tokenizer.get_added_vocab()) if token.strip())


@lru_cache(maxsize=16)
def _around_answer(processor: Any) -> tuple[str, str]:
    """What the template writes before and behind an answer; white space behind it left out."""
    text, ((begin, end),) = _lay_out(processor, [MEASURED], video=True)
    before, _, behind = text[begin:end].partition(str(MEASURED.answer))
    return before, behind


@lru_cache(maxsize=4096)
def _measure_video(chat: HostChat, processor: Any, frame_times_s: tuple[float, ...]) -> tuple[int, str]:
    """Tokens up to the last of a video of the smallest frames at these times, and what closes it."""
    side_px = chat.small_px(processor)
    frames = np.zeros((len(frame_times_s), side_px, side_px, 3), np.uint8)
    text = _lay_out(processor, [Turn("?")], video=True)[0]
    shown = _show(chat, processor, frames, frame_times_s, text)
    return len(shown.start), shown.closing


@lru_cache(maxsize=4096)
def _step_tokens(chat: HostChat, processor: Any, height_px: int, width_px: int) -> int:
    """Placeholders of a video of one step of time."""
    count = chat.frames_per_step(processor)
    text = _lay_out(processor, [Turn("?")], video=True)[0]
    frames = np.zeros((count, height_px, width_px, 3), np.uint8)
    shown = _show(chat, processor, frames, [float(n) for n in range(count)], text)
    return int((shown.start == chat.placeholder(processor)).sum())


def _refuse_compression(compress: bool) -> None:
    if compress:
        raise ValueError("compress=True: VideoLLaMA3 alone can drop tokens of a video; pass compress=False")


def _name(processor: Any) -> str:
    return type(processor).__name__


def _merge_blocks(processor: Any) -> FrameSize:
    video = processor.video_processor
    return FrameSize(video.patch_size * video.merge_size)


def _merge_block_px(processor: Any) -> int:
    return _merge_blocks(processor).multiple_px


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
