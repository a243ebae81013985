"""Make FAVOR-Train ready to train on: cut the clips out of uncut YouTube videos, list what is missing or bad.

The program is moss_vllm/commands/scripts/prepare_favor.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.prepare_favor")
