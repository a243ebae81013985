"""VideoLLaMA3 with MOSS: the model, its checkpoints and its miniature."""
