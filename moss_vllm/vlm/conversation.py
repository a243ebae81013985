"""What the conversations of all families share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of a token that the loss leaves out, in transformers and here


@dataclass(frozen=True)
class FrameSize:
    """The sizes of frames that a processor takes as they are.

    Args:
        multiple_px: both sides are multiples of it.
        square_px: frames are squares of exactly this side; None: any multiple.
    """

    multiple_px: int
    square_px: int | None = None

    def check(self, height_px: int, width_px: int) -> None:
        """ValueError for frames of another size."""
        sides = (height_px, width_px)
        if self.square_px is not None and sides != (self.square_px, self.square_px):
            wanted = f"squares of {self.square_px} px"
        elif min(sides) < 1 or any(side % self.multiple_px for side in sides):
            wanted = f"sides that are multiples of {self.multiple_px} px"
        else:
            return
        raise ValueError(
            f"frames of {height_px} x {width_px} px; this model takes {wanted}: read the clip at such a size"
        )


def has_special_token(text: str) -> bool:
    """Whether a tokenizer could read part of a text as a token of the chat layout, such as <|im_end|>."""
    return "<|" in text and "|>" in text


def pad_texts(examples: Sequence[dict[str, Tensor]], *, pad_id: int, left: bool = False) -> dict[str, Tensor]:
    """The texts of examples as a batch, padded to the longest; `left` padding is for generation.

    Shape:
        input_ids, labels: (S,) each -> input_ids, labels, attention_mask: (B, S).
    """
    side = "left" if left else "right"

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    return {
        "input_ids": padded([example["input_ids"] for example in examples], pad_id),
        "labels": padded([example["labels"] for example in examples], IGNORED),
        "attention_mask": padded([torch.ones_like(example["input_ids"]) for example in examples], 0),
    }
