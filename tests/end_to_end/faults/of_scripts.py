"""Commands of scripts/.

A command may hold <tmp>, <base>, <clip> and <checkpoint>.
"""

import re
import shlex

from faults.engine import cut, edit_json, fault, hostile


def fault_of_a_script(title, status, command, *, prepare=lambda ground: None):
    name, *given = shlex.split(command)

    @fault(f"{name}.py: {title}", status)
    def _(ground):
        folder = ground.checkpoint()
        prepare(ground)
        places = {"tmp": ground.tmp, "base": ground.tiny_base, "clip": ground.clip(0), "checkpoint": folder}
        texts = [re.sub(r"<(\w+)>", lambda found: str(places[found[1]]), text) for text in given]
        return ground.script(name, *texts)


def file_at_out(ground):
    (ground.tmp / "out").write_text("mine")


def full_out(ground):
    (ground.tmp / "out").mkdir()
    (ground.tmp / "out" / "mine.txt").write_text("mine")


def release(text):
    def write(ground):
        (ground.tmp / "release").mkdir()
        (ground.tmp / "release" / "config.json").write_text(text)

    return write


ASK = "ask <clip> 'what moves?' --ckpt <base>"
fault_of_a_script("no video there", 1, "ask <tmp>/gone.mp4 'what moves?'")
fault_of_a_script("no checkpoint there", 1, "ask <clip> 'what moves?' --ckpt <tmp>/gone")
fault_of_a_script("0 words", 2, f"{ASK} --max-new-tokens 0")
fault_of_a_script("an end before the start", 1, f"{ASK} --start-s 5 --end-s 2")
fault_of_a_script("a start after the end", 1, f"{ASK} --start-s 500")
fault_of_a_script("a special token in the question", 1, "ask <clip> '<|im_end|>' --ckpt <base>")
fault_of_a_script("an unknown device", 1, f"{ASK} --device cdua")


def cut_adapter(ground):
    cut(ground.tmp / "run" / "step-000001" / "adapter_model.safetensors")


MERGE = "merge <checkpoint> <tmp>/out"
fault_of_a_script("a folder that is no checkpoint", 1, "merge <tmp>/gone <tmp>/out")
fault_of_a_script("an output folder in use", 1, MERGE, prepare=full_out)
fault_of_a_script("an adapter that is cut short", 1, MERGE, prepare=cut_adapter)


def pickle_beside(ground):
    (ground.tmp / "run" / "step-000001" / "adapter_model.bin").write_bytes(hostile(ground))


def token_in_record(ground):
    edit_json(ground.tmp / "run" / "step-000001" / "run.json", command=f"train --token hf_{'a' * 30}")


PUSH = "push <checkpoint> owner/name --dry-run --out <tmp>/out"
fault_of_a_script("a name without an owner", 1, "push <checkpoint> name --dry-run")
fault_of_a_script("an output folder in use", 1, PUSH, prepare=full_out)
fault_of_a_script("a result that is not there", 1, f"{PUSH} --results <tmp>/gone.json")
fault_of_a_script("a pickle in the checkpoint", 1, PUSH, prepare=pickle_beside)
fault_of_a_script("an access token in the record", 1, PUSH, prepare=token_in_record)

CONVERT = "convert_videollama3 <tmp>/release <tmp>/out"
fault_of_a_script("no release there", 1, CONVERT)
fault_of_a_script("a native model", 1, "convert_videollama3 <base> <tmp>/out")
fault_of_a_script("broken JSON", 1, CONVERT, prepare=release("{"))
fault_of_a_script("JSON that is a list", 1, CONVERT, prepare=release("[]"))


def foreign_list(ground):
    (ground.tmp / "out").mkdir()
    (ground.tmp / "out" / "checked.jsonl").write_text('{"a": 1}\n')


FAVOR, IN_USE = "--data <tmp>/FAVOR", "an output folder that is a file"
for script, flag in (("check_videos", "--out"), ("cache_frames", "--cache")):
    fault_of_a_script("no data there", 2, f"{script} --data <tmp>/gone {flag} <tmp>/out")
    fault_of_a_script(IN_USE, 2, f"{script} {FAVOR} {flag} <tmp>/out", prepare=file_at_out)
fault_of_a_script("0 frames a second", 2, f"check_videos {FAVOR} --sample-fps 0 --out <tmp>/out")
fault_of_a_script(
    "a list that something else wrote", 2, f"check_videos {FAVOR} --out <tmp>/out", prepare=foreign_list
)
fault_of_a_script("no videos there", 2, f"prepare_favor {FAVOR} --videos <tmp>/gone")
fault_of_a_script("no annotation there", 2, "prepare_favor --data <tmp>/gone")
fault_of_a_script(IN_USE, 2, f"prepare_favor {FAVOR} --out <tmp>/out", prepare=file_at_out)
