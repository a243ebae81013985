"""What the conversations of all families share."""

IGNORED = -100  # the label of a token that the loss leaves out, in transformers and here


def has_special_token(text: str) -> bool:
    """Whether a tokenizer could read part of a text as a token of the chat layout, such as <|im_end|>."""
    return "<|" in text and "|>" in text
