"""Video-LLMs of transformers as hosts of MOSS: what differs between them, in data and short functions."""
