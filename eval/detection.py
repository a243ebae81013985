"""Test a detector on whole videos, and print mAP at temporal IoU beside the paper's Table 8.

The program is moss_vllm/commands/eval/detection.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.detection")
