"""Rows of any source -> training batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import VideoLlama3Processor

from moss_vllm.data.rows import CAPTION_PROMPT, ClipRow, Rejected, Turn
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.vlm.plan import too_long
from moss_vllm.vlm.video_llama3.chat import IGNORED, PER_VIDEO, collate, encode


class TrainingSet:
    """Conversations about clips, and without any. A row is used whole or not at all.

    Args:
        rows: from `data.plan.plan`, or the `rows` of `data.sources.read_sources`.
        processor: a `VideoLlama3Processor`.
        compress: VideoLLaMA3's token compression.
        max_tokens: a longer conversation is rejected; cutting it would cut the video or an answer.
        shares: rows and weight of each source, in the order of `rows`; by default they are one source.
        read: reads a clip; has the arguments of `read_clip`.
    """

    def __init__(
        self,
        rows: Sequence[ClipRow],
        processor: VideoLlama3Processor,
        *,
        sampling: Sampling,
        compress: bool,
        max_tokens: int,
        shares: Sequence[tuple[int, float]] | None = None,
        read: Callable[..., Clip] = read_clip,
    ) -> None:
        self.rows, self.processor, self.compress, self.max_tokens = rows, processor, compress, max_tokens
        self.shares: list[tuple[int, float]] = [(len(rows), 1.0)] if shares is None else list(shares)
        if sum(count for count, _ in self.shares) != len(rows):
            raise ValueError(f"shares {self.shares} do not add up to {len(rows)} rows; pass both of one Plan")
        self.read, self.sampling = read, sampling

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The video of a row, or its id."""
        return str(self.rows[index].path or self.rows[index].row_id)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]] | Rejected:
        row, clip = self.rows[index], None
        try:
            if row.path is not None:
                clip = self.read(
                    row.path, sampling=self.sampling, start_s=row.start_s or 0.0, end_s=row.end_s
                )
        except BadVideo as error:
            return Rejected(row.row_id, str(error))
        try:
            example = encode(self.processor, clip, row.turns, compress=self.compress)
        except ValueError as error:  # a text with a special token
            return Rejected(row.row_id, str(error))
        if (tokens := len(example["input_ids"])) > self.max_tokens:
            frames = 0 if clip is None else len(clip.frames)
            return Rejected(row.row_id, too_long(tokens, frames, self.max_tokens))
        return row.row_id, example

    def collate(self, rows: Sequence[tuple[str, dict[str, Tensor]] | Rejected]) -> dict[str, Any]:
        """`data.chat.collate` of the usable rows, with their ids, the rejected ones, and what they count."""
        rejected = [row for row in rows if isinstance(row, Rejected)]
        used = [row for row in rows if not isinstance(row, Rejected)]
        examples = [example for _, example in used]
        # Every process runs the vision tower and MOSS in every step, or the others wait for it forever.
        if not any(PER_VIDEO[0] in example for example in examples):
            examples.append(self._silent_example())
        batch: dict[str, Any] = dict(collate(examples, pad_id=self.processor.tokenizer.pad_token_id))
        return {
            **batch,
            "row_ids": [row_id for row_id, _ in used],
            "rejected": rejected,
            "count": int((batch["labels"][:, 1:] != IGNORED).sum()),
            "read": int(batch["attention_mask"].sum()),
        }

    def _silent_example(self) -> dict[str, Tensor]:
        """A black picture about which nothing is learned; one frame leaves MOSS's statistics as they are."""
        black = Clip(np.zeros((1, 56, 56, 3), np.uint8), np.array([0.0]))
        example = encode(self.processor, black, [Turn(CAPTION_PROMPT, "Nothing.")], compress=False)
        return {**example, "labels": example["labels"].fill_(IGNORED)}
