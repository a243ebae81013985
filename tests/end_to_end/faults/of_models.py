"""Checkpoints of a Video-LLM and base models.

A checkpoint is opened by `checkpoint.load`, a base by the recipe's dry run.
"""

import json

from transformers import Qwen2Config

from faults.engine import STARTED, cut, edit_json, edit_weights, fault, hostile, name_code, to_nan

ADAPTER = "adapter_model.safetensors"


def fault_of_a_checkpoint(title, kind=ValueError):
    def add(damage):
        @fault(title, kind)
        def _(ground):
            folder = ground.checkpoint()
            damage(ground, folder)
            return ground.load(folder)

    return add


@fault_of_a_checkpoint("an adapter that is cut short")
def _(ground, folder):
    cut(folder / ADAPTER)


@fault_of_a_checkpoint("an adapter with NaN")
def _(ground, folder):
    edit_weights(folder / ADAPTER, to_nan)


@fault_of_a_checkpoint("an adapter with an empty tensor")
def _(ground, folder):
    edit_weights(folder / ADAPTER, lambda tensor: tensor[:0])


@fault_of_a_checkpoint("an adapter that is a pickle")
def _(ground, folder):
    (folder / ADAPTER).unlink()
    (folder / "adapter_model.bin").write_bytes(hostile(ground))


@fault_of_a_checkpoint("a pickle called .safetensors")
def _(ground, folder):
    (folder / ADAPTER).write_bytes(hostile(ground))


@fault_of_a_checkpoint("a checkpoint of another base")
def _(ground, folder):
    edit_weights(ground.base() / "model.safetensors", lambda tensor: tensor + 1)
    edit_json(folder / "run.json", base_model=str(ground.tmp / "base"))


@fault_of_a_checkpoint("a checkpoint whose base is gone", FileNotFoundError)
def _(ground, folder):
    edit_json(folder / "run.json", base_model=str(ground.tmp / "gone"))


@fault_of_a_checkpoint("a checkpoint without run.json", FileNotFoundError)
def _(ground, folder):
    (folder / "run.json").unlink()


@fault_of_a_checkpoint("another window of MOSS")
def _(ground, folder):
    moss = json.loads((folder / "run.json").read_text())["moss"]
    edit_json(folder / "run.json", moss={**moss, "moss_window": [5, 5, 5]})


@fault_of_a_checkpoint("a setting that MOSS does not have")
def _(ground, folder):
    edit_json(folder / "run.json", moss={"moss_win": [3, 3, 3]})


@fault_of_a_checkpoint("a checkpoint without its tokenizer")
def _(ground, folder):
    (folder / "tokenizer.json").unlink()


@fault_of_a_checkpoint("a processor that is code, and a user who answers yes")
def _(ground, folder):
    name_code(ground, folder)


@fault("a checkpoint that is not there", FileNotFoundError)
def _(ground):
    return ground.load(ground.tmp / "gone")


@fault("a run's folder in place of a checkpoint", FileNotFoundError)
def _(ground):
    ground.checkpoint()
    return ground.load(ground.tmp / "run")


# ---- base models


def fault_of_a_base(title):
    def add(damage):
        @fault(title, ValueError)
        def _(ground):
            damage(ground, ground.base())
            return ground.dry(model=ground.tmp / "base")

    return add


@fault("a model that is not there", FileNotFoundError)
def _(ground):
    return ground.dry(model=ground.tmp / "gone")


@fault_of_a_base("a base with a missing weight")
def _(ground, folder):
    edit_weights(folder / "model.safetensors", lambda tensor: None, -1)


@fault_of_a_base("a base with an empty weight")
def _(ground, folder):
    edit_weights(folder / "model.safetensors", lambda tensor: tensor[:0], -1)


@fault_of_a_base("a base that is cut short")
def _(ground, folder):
    cut(folder / "model.safetensors", 7)


@fault_of_a_base("a base without weights")
def _(ground, folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(hostile(ground))


@fault_of_a_base("a base with broken JSON")
def _(ground, folder):
    (folder / "config.json").write_text("{")


@fault_of_a_base("another kind of model")
def _(ground, folder):
    Qwen2Config(hidden_size=8).save_pretrained(folder)


@fault_of_a_base("the authors' release as it is")
def _(ground, folder):
    edit_json(folder / "config.json", model_type="videollama3_qwen2", auto_map={"AutoConfig": "own.Own"})
    name_code(ground, folder)


@fault_of_a_base("a base whose processor is code, and a user who answers yes")
def _(ground, folder):
    name_code(ground, folder)


@fault("a checkpoint in place of a base", FileNotFoundError)
def _(ground):
    return ground.dry(model=ground.checkpoint())


@fault(
    "a base with NaN: a loss that is NaN",
    RuntimeError,
    leaves=(*STARTED, "run/not-finite-step-000001-0.json"),
)
def _(ground):
    edit_weights(ground.base() / "model.safetensors", to_nan)
    return ground.train(model=ground.tmp / "base")
