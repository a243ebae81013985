"""Test a boundary model, and print F1 at relative distances beside the paper's Table 9.

The program is moss_vllm/commands/eval/boundaries.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.boundaries")
