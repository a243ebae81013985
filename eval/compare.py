"""Compare evaluations of one benchmark, or tests of detectors: each folder against each one named before it.

The program is moss_vllm/commands/eval/compare.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.compare")
