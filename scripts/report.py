"""One HTML page of a training run, an evaluation's answers, or a detector's or boundary model's test.

The program is moss_vllm/commands/scripts/report.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.report")
