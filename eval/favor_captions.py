"""FAVOR-Bench's open-ended half: a caption of every video, for the benchmark's own LLM-free scripts to score.

The program is moss_vllm/commands/eval/favor_captions.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("eval.favor_captions")
