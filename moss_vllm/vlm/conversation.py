"""What the conversations of all families share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of a token that the loss leaves out, in transformers and here


def small_frame(chat: Any, processor: Any) -> tuple[int, int]:
    """Height and width of a small frame that a processor takes: two merge blocks a side, or its square."""
    sides = chat.frame_size(processor)
    side_px = sides.square_px or 2 * sides.multiple_px
    return side_px, side_px


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
