"""Video-LLMs with MOSS: their families, training rows, loss and checkpoints.

Importing it registers the models with transformers' Auto classes.
"""

from moss_vllm.vlm import families as families
