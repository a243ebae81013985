"""Decode every clip as training does, before training: which files are corrupt, hang or crash a decoder?

The program is moss_vllm/commands/scripts/check_videos.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.check_videos")
