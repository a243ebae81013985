"""Publish a checkpoint, or a model of scripts/merge.py, on the Hugging Face hub, with a filled model card.

The program is moss_vllm/commands/scripts/push.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.push")
