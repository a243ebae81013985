"""VideoLLaMA3 with MOSS: the model, its checkpoints and its miniature.

Importing it registers the model with transformers' Auto classes.
"""

from moss_vllm.vlm.video_llama3 import model as model
