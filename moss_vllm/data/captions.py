"""Captioned clips -> training batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import VideoLlama3Processor

from moss_vllm.data.chat import CAPTION_PROMPT, IGNORED, Turn, collate, encode
from moss_vllm.data.rows import CaptionRow
from moss_vllm.data.video import BadVideo, Clip, read_clip
from moss_vllm.training import Rejected


class CaptionDataset:
    """Rows as conversations: "describe what is happening" -> caption. A row is used whole or not at all.

    Args:
        rows: from `data.favor.read_favor_train`.
        processor: a `VideoLlama3Processor`.
        sample_fps, short_side_px, max_frames: how `read_clip` samples and resizes.
        compress: VideoLLaMA3's token compression.
        max_tokens: a longer conversation is rejected; cutting it would cut the video or the answer.
    """

    def __init__(
        self,
        rows: Sequence[CaptionRow],
        processor: VideoLlama3Processor,
        *,
        sample_fps: float,
        short_side_px: int,
        max_frames: int,
        compress: bool,
        max_tokens: int,
    ) -> None:
        self.rows, self.processor, self.compress, self.max_tokens = rows, processor, compress, max_tokens
        self.sampling: dict[str, Any] = {
            "sample_fps": sample_fps,
            "short_side_px": short_side_px,
            "max_frames": max_frames,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]] | Rejected:
        row = self.rows[index]
        try:
            clip = read_clip(row.path, start_s=row.start_s or 0.0, end_s=row.end_s, **self.sampling)
        except BadVideo as error:
            return Rejected(row.row_id, str(error))
        turns = [Turn(CAPTION_PROMPT, row.caption)]
        try:
            example = encode(self.processor, clip, turns, compress=self.compress)
        except ValueError as error:  # a caption with a special token
            return Rejected(row.row_id, str(error))
        if (tokens := len(example["input_ids"])) > self.max_tokens:
            return Rejected(
                row.row_id,
                f"{tokens} tokens of {len(clip.frames)} frames and the caption, more than max_tokens="
                f"{self.max_tokens}; raise it, or lower sample_fps, max_frames or short_side_px",
            )
        return row.row_id, example

    def collate(self, rows: Sequence[tuple[str, dict[str, Tensor]] | Rejected]) -> dict[str, Any]:
        """`data.chat.collate` of the usable rows, with their ids and the rejected ones."""
        rejected = [row for row in rows if isinstance(row, Rejected)]
        used = [row for row in rows if not isinstance(row, Rejected)]
        # A process must take part in every step: with nothing to say, it says nothing about a black clip.
        examples = [example for _, example in used] or [self._silent_example()]
        batch: dict[str, Any] = dict(collate(examples, pad_id=self.processor.tokenizer.pad_token_id))
        return {**batch, "row_ids": [row_id for row_id, _ in used], "rejected": rejected}

    def _silent_example(self) -> dict[str, Tensor]:
        black = Clip(np.zeros((2, 56, 56, 3), np.uint8), np.array([0.0, 0.5]))
        example = encode(self.processor, black, [Turn(CAPTION_PROMPT, "Nothing.")], compress=False)
        return {**example, "labels": example["labels"].fill_(IGNORED)}
