"""Reading rows of any source and putting them together as training batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from moss_vllm.data.rows import CAPTION_PROMPT, ClipRow, Rejected, Turn
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.vlm.conversation import IGNORED, small_frame
from moss_vllm.vlm.families import family_with
from moss_vllm.vlm.plan import too_long


class TrainingSet:
    """Conversations with and without a clip. A row is used whole or not at all.

    Args:
        rows: from `vlm.plan.plan`, or the `rows` of `data.sources.read_sources`.
        processor: of one of the families.
        sampling: how `read` samples and resizes.
        compress: whether the processor drops tokens of patches that do not change.
        max_tokens: a longer conversation is rejected; cutting it would cut the video or an answer.
        shares: number of rows and weight of each source, in the order of `rows`; by default one source.
        read: reads a clip; takes the arguments of `read_clip`.
    """

    def __init__(
        self,
        rows: Sequence[ClipRow],
        processor: Any,
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

    @property
    def chat(self) -> Any:
        """How the processor's family writes conversations."""
        return family_with(self.processor).chat

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The video of a row, or its id."""
        return str(self.rows[index].path or self.rows[index].row_id)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Tensor]] | Rejected:
        return self.read_row(self.rows[index])

    def read_row(self, row: ClipRow) -> tuple[str, dict[str, Tensor]] | Rejected:
        """The id and the example of any row, or why it has none."""
        clip = None
        try:
            if row.path is not None:
                clip = self.read(
                    row.path, sampling=self.sampling, start_s=row.start_s or 0.0, end_s=row.end_s
                )
        except BadVideo as error:
            return Rejected(row.row_id, str(error))
        try:
            example = self.chat.encode(self.processor, clip, row.turns, compress=self.compress)
        except ValueError as error:  # a special token in the text
            return Rejected(row.row_id, str(error))
        if (tokens := len(example["input_ids"])) > self.max_tokens:
            frames = 0 if clip is None else len(clip.frames)
            return Rejected(row.row_id, too_long(tokens, frames, self.max_tokens))
        return row.row_id, example

    def collate(self, rows: Sequence[tuple[str, dict[str, Tensor]] | Rejected]) -> dict[str, Any]:
        """The batch of the usable rows, their ids, the rejected rows, and the numbers of tokens."""
        rejected = [row for row in rows if isinstance(row, Rejected)]
        used = [row for row in rows if not isinstance(row, Rejected)]
        examples = [example for _, example in used]
        # Every process must run the vision tower and MOSS in every step: the others wait for it there.
        if not any(self.chat.video_inputs[0] in example for example in examples):
            examples.append(self._silent_example())
        batch: dict[str, Any] = dict(
            self.chat.collate(examples, pad_id=self.processor.tokenizer.pad_token_id)
        )
        return {
            **batch,
            "row_ids": [row_id for row_id, _ in used],
            "rejected": rejected,
            "count": int((batch["labels"][:, 1:] != IGNORED).sum()),
            "read": int(batch["attention_mask"].sum()),
        }

    def _silent_example(self) -> dict[str, Tensor]:
        """A black picture without labels; with one frame only, MOSS's statistics do not change."""
        black = Clip(np.zeros((1, *small_frame(self.chat, self.processor), 3), np.uint8), np.zeros(1))
        turns = [Turn(CAPTION_PROMPT, "Nothing.")]
        example: dict[str, Tensor] = self.chat.encode(self.processor, black, turns, compress=False)
        return {**example, "labels": example["labels"].fill_(IGNORED)}
