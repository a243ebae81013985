"""Attach a new MOSS to a Video-LLM of transformers' own classes, and save it for `moss_vllm.load`.

The program is moss_vllm/commands/scripts/attach.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.attach")
