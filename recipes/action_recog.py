"""Action recognition: the ladder with MOSS beside a frozen image encoder (Sec. 3.4, Tables 1-4, 6, 7, 10).

The program is moss_vllm/commands/recipes/action_recog.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("recipes.action_recog")
