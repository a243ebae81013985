"""Test a video classifier from several views, and print top-1, top-5 and the mean over classes.

The program is moss_vllm/commands/eval/action_recog.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.action_recog")
