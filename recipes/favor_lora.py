"""Fine-tune VideoLLaMA3 with MOSS on FAVOR-Train captions: LLM by LoRA, MOSS and projector whole (Sec. 4.5).

The program is moss_vllm/commands/recipes/favor_lora.py.
"""

from moss_vllm.commands import start_program

if __name__ == "__main__":
    start_program("recipes.favor_lora")
