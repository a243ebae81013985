"""A keeper whose checkpoints are a small model's weights, all of them, in one file."""

from moss_vllm.runtime.trained_weights import read_trained, refuse_other_bits, write_trained

FILE = "weights.safetensors"


class Keeper:
    def __init__(self, model):
        self.model = model

    def state(self):
        return self.model.state_dict()

    def save(self, folder, state, step):
        write_trained(folder / FILE, state)

    def restore(self, folder):
        self.model.load_state_dict(read_trained(folder / FILE))

    def check(self, folder, state):
        refuse_other_bits(folder / FILE, state)
