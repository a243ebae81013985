"""Draw one video of a test over time: what happens in it, and what was found.

The program is moss_vllm/commands/scripts/timeline.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.timeline")
