"""Merge a checkpoint into one full model: LoRA added to the weights, trained projector and MOSS in place.

The program is moss_vllm/commands/scripts/merge.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.merge")
