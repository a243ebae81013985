"""A sense of motion for video models: multi-order self-similarity (MOSS) attached to Video-LLMs and CLIP."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported at the first use of a name: transformers takes seconds.
_LAZY = {
    "attach": ("vlm.attach", "attach"),
    "detach": ("vlm.attach", "detach"),
    "trained_modules": ("vlm.attach", "trained_modules"),
    "save": ("vlm.attached_folder", "save_attached"),
    "load": ("vlm.attached_folder", "load_attached"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, function = _LAZY[name]
    return getattr(import_module(f"{__name__}.{module}"), function)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
