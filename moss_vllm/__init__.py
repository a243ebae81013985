"""A sense of motion for video models: multi-order self-similarity (MOSS) attached to VideoLLaMA3 and CLIP."""

__version__ = "0.1.0"
