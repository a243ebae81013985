"""MotionBench: ask a model its questions about motion, and print the right half of the paper's Table 5.

The program is moss_vllm/commands/eval/motionbench.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.motionbench")
