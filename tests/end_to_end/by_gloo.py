"""Runs a script whose DeepSpeed exchanges tensors by gloo alone: by_gloo.py SCRIPT FLAGS...

On Linux DeepSpeed's CPU backend first compiles a library for processes that share memory, which takes two
minutes of two cores in every new environment; elsewhere, and on GPUs, it does without.
"""

import importlib
import runpy
import sys

backend = importlib.import_module("deepspeed.comm.torch")  # an attribute of that name is torch itself
assert callable(backend.build_shm_op)
backend.build_shm_op = lambda: None

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
