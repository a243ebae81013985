"""What the conversations of all families share."""

from typing import Any

IGNORED = -100  # the label of a token that the loss leaves out, in transformers and here


def small_frame(chat: Any, processor: Any) -> tuple[int, int]:
    """Height and width of a small frame that a processor takes: two merge blocks a side, or its square."""
    sides = chat.frame_size(processor)
    side_px = sides.square_px or 2 * sides.multiple_px
    return side_px, side_px


def has_special_token(text: str) -> bool:
    """Whether a tokenizer could read part of a text as a token of the chat layout, such as <|im_end|>."""
    return "<|" in text and "|>" in text
