"""Draw the paper's pictures of self-similarity: its toy clip (Figs. 3, 7), or any video (Figs. 5, 9-13).

The program is moss_vllm/commands/scripts/visualize_stss.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.visualize_stss")
