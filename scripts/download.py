"""Fetch what the hub holds of the data sets, and compare its counts with the published ones.

The program is moss_vllm/commands/scripts/download.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.download")
