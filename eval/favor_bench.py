"""FAVOR-Bench: ask a model its questions about motion, and print the left half of the paper's Table 5.

The program is moss_vllm/commands/eval/favor_bench.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.favor_bench")
