"""What other libraries print that nobody who runs a command can act on, kept away in one place."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Open or write a model without weight bars, advice of transformers and peft's use of a deprecated name.

    Downloads from the hub keep their bars.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by that name.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def quiet_deepspeed() -> None:
    """Without its warning that there is no GPU, which it gives wherever it is imported, used or not."""
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()
