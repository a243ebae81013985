"""Decode every clip once, in parallel, into a folder from which training and evaluation then read frames.

The program is moss_vllm/commands/scripts/cache_frames.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.cache_frames")
