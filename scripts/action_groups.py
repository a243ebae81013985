"""Accuracy by action group of two tests of the same clips, and what the second gains: the paper's Fig. 8.

The program is moss_vllm/commands/scripts/action_groups.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.action_groups")
