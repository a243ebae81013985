"""Settings, folders and checkpoints to go on from, of recipes/favor_lora.py.

Each in a run of the recipe; most are found before a row is read.
"""

import importlib.util
import shutil

from safetensors.torch import load_file, save_file

from faults.engine import PLANNED, edit_json, edit_weights, fault, hostile, to_nan
from moss_vllm.data.rows import BadRow

for title, text in {
    "an unknown setting in the config": "stesp: 3",
    "a text where a number is due": "steps: many",
    "1e-3 in the config, which YAML reads as a text": "lr_moss: 1e-3",
    "a setting twice in the config": "steps: 3\nsteps: 4",
    "a fraction where a whole number is due": "steps: 1.5",
    "yes or no where a number is due": "steps: true",
    "a number where yes or no is due": "use_moss: 1",
    "nothing where a text is due": "model: null",
    "a config that is a list": "- steps",
    "an empty config": "",
    "a config that is no YAML": "steps: [",
    "a config nested too deeply": "steps: " + "[" * 5000 + "]" * 5000,
}.items():

    @fault(title, ValueError)
    def _(ground, text=text):
        (ground.tmp / "run.yaml").write_text(text)
        return ground.dry(config=ground.tmp / "run.yaml")


@fault("a config that is not there", ValueError)
def _(ground):
    return ground.dry(config=ground.tmp / "gone.yaml")


for title, settings in {
    "precision half": {"precision": "half"},
    "0 steps": {"steps": 0},
    "a learning rate of NaN": {"lr_moss": "nan"},
    "two wrong settings": {"batch_size": 0, "workers": -1},
    "0 frames": {"max_frames": 0},
    "0 pixels": {"short_side_px": 0},
    "a negative seed": {"seed": -1},
    "alpha 0, with which LoRA learns nothing": {"lora_alpha": 0},
    "dropout 1, with which LoRA learns nothing": {"lora_dropout": 1},
    "0 questions to ask": {"eval_questions": 0},
    "no data in quotes, as of an unset variable": {"data": ""},
    "an unknown size": {"model": "shape:13b"},
    "an unknown tracker": {"tracker": "excel"},
}.items():

    @fault(title, ValueError)
    def _(ground, settings=settings):
        return ground.dry(**settings)


for flags in """
    --cache-gib 3
    --eval-every 3
    --eval-questions 3
    --videos .
    --no-use-moss --lr-moss 1e-3
    --revision main
    --eval-data x --steps 50
    --clips-a-step 8 --accumulate 2
""".strip().splitlines():  # what would be ignored, or is said twice

    @fault(f"`recipes/favor_lora.py {flags.strip()}`", ValueError)
    def _(ground, flags=flags):
        return ground.bare(*flags.split())


@fault("a size in place of a model to train", ValueError)
def _(ground):
    return ground.train(model="shape:2b")


@fault("a tracker that is not installed", ImportError)
def _(ground):
    find = importlib.util.find_spec
    ground.patch(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more)
    )
    return ground.train(tracker="wandb")


# ---- folders to write to and to ask from


@fault("evaluation data without a benchmark", BadRow, leaves=PLANNED)
def _(ground):
    (ground.tmp / "empty").mkdir()
    return ground.train(eval_data=ground.tmp / "empty", eval_every=1)


@fault("a video of the evaluation that cannot be read", ValueError, leaves=PLANNED)
def _(ground):
    shutil.copytree(ground.world / "MotionBench", ground.tmp / "bench")
    for path in (ground.tmp / "bench").rglob("*.mp4"):
        path.write_bytes(b"")
    return ground.train(eval_data=ground.tmp / "bench", eval_every=1, eval_questions=3)


@fault("a cache that is a file", ValueError)
def _(ground):
    (ground.tmp / "cache").write_text("")
    return ground.dry(cache=ground.tmp / "cache")


@fault("an output folder that is a file", ValueError)
def _(ground):
    (ground.tmp / "run").write_text("")
    return ground.train()


# ---- going on with a run


@fault("resuming from a folder that is no checkpoint", FileNotFoundError)
def _(ground):
    (ground.tmp / "mine").mkdir()
    return ground.train(resume=ground.tmp / "mine")


@fault("a new run in the folder of another", FileExistsError)
def _(ground):
    ground.checkpoint()
    return ground.train(lr_moss=0.01, tracker="tensorboard")


def fault_of_a_resume(title, *more, **settings):
    def add(damage):
        @fault(title, ValueError)
        def _(ground):
            damage(ground, ground.checkpoint() / "state")
            return ground.train(*more, resume="auto", **settings)

    return add


@fault_of_a_resume("resuming with another number of processes")
def _(ground, state):
    shutil.copy(state / "random-0.safetensors", state / "random-1.safetensors")


@fault_of_a_resume("resuming with another rank of LoRA", lora_rank=8)
def _(ground, state):
    pass


@fault_of_a_resume("resuming without MOSS", "--no-use-moss")
def _(ground, state):
    pass


@fault_of_a_resume("a state that DeepSpeed wrote")
def _(ground, state):
    (state / "zero").mkdir()
    (state / "zero" / "optim.pt").write_bytes(hostile(ground))


@fault_of_a_resume("a pickle in place of the optimizer's state")
def _(ground, state):
    (state / "optimizer.safetensors").write_bytes(hostile(ground))


@fault_of_a_resume("a pickle in place of the random state")
def _(ground, state):
    (state / "random-0.safetensors").write_bytes(hostile(ground))


@fault_of_a_resume("an optimizer's state of another shape")
def _(ground, state):
    edit_weights(state / "optimizer.safetensors", lambda tensor: tensor[:0])


@fault_of_a_resume("an optimizer's state of NaN")
def _(ground, state):
    edit_weights(state / "optimizer.safetensors", to_nan)


@fault_of_a_resume("an optimizer's state out of range")
def _(ground, state):
    edit_weights(state / "optimizer.safetensors", lambda tensor: -tensor.abs() - 1, pick=1)


@fault_of_a_resume("a random state of another shape")
def _(ground, state):
    edit_weights(state / "random-0.safetensors", lambda tensor: tensor[:3], pick="python")


@fault_of_a_resume("a random state out of range")
def _(ground, state):
    weights = load_file(state / "random-0.safetensors")
    weights["numpy_rest"][0] = 1e9
    save_file(weights, state / "random-0.safetensors")


@fault_of_a_resume("counts out of range")
def _(ground, state):
    edit_json(state / "progress.json", seen=-5)


@fault_of_a_resume("a broken progress.json")
def _(ground, state):
    (state / "progress.json").write_text('{"step": 1')


@fault_of_a_resume("a broken settings.json of the run")
def _(ground, state):
    (state.parents[1] / "settings.json").write_text("{")
