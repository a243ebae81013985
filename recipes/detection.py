"""Temporal action detection: AdaTAD with MOSS on THUMOS-14 (Sec. C.1, Table 8).

The program is moss_vllm/commands/recipes/detection.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("recipes.detection")
