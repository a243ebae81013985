"""Convert the authors' release of VideoLLaMA3 (remote code) to transformers' own format, which is used here.

The program is moss_vllm/commands/scripts/convert_videollama3.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("scripts.convert_videollama3")
