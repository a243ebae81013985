"""Messages of other libraries that no user of a command can act on, silenced in one place."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Open or write a model without weight bars, advice of transformers and peft's use of a deprecated name.

    Downloads from the hub keep their bars.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as messages

    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            # peft 0.21 uses this name of transformers 5.23.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()


def quiet_profiler() -> None:
    """Silence torch's profiler before its first use: it logs its start, and a missing GPU as an error."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def quiet_deepspeed() -> None:
    """Silence DeepSpeed's warning of a missing GPU, which it logs on import even if it is not used."""
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()
