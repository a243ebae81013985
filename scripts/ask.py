"""Ask a model about a video; the answer appears word by word.

The program is moss_vllm/commands/scripts/ask.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.ask")
