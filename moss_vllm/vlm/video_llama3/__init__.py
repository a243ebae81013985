"""VideoLLaMA3 with MOSS."""
