"""Generic event boundary detection: BasicGEBD with MOSS on Kinetics-GEBD and TAPOS (Sec. C.2, Table 9).

The program is moss_vllm/commands/recipes/boundaries.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("recipes.boundaries")
