"""A run so small that it compiles in seconds: shared by the tests."""

import jax
import numpy as np

from configs import base
from eir_jax.models.encoder import make_encoder
from eir_jax.objectives.objective import passes_of
from eir_jax.objectives.systems import make_objective
from eir_jax.run.optimizer import make_optimizer, make_schedule
from eir_jax.system import sharding
from eir_jax.training.parts import Parts
from eir_jax.training.step import compile_train_step

TINY = """
from configs import base
def get_config():
    c = base.get_config()
    c.model.name, c.model.width, c.model.embedding_dim = "resnet6", 2, 8
    c.data.name, c.data.image_size, c.data.pipeline = "tiny", 8, "device"
    c.batch_size, c.evaluation_batch_size, c.log_every_steps = 4, 32, 3
    c.eval_every_epochs, c.num_epochs = 1, 0
    c.linear.num_epochs, c.linear.learning_rates = 1, (0.1,)
    c.linear.weight_decays = (0.001,)
    return c
"""
NUM_EXAMPLES = 70
STEPS_PER_EPOCH = 2


def small_config(**changes):
    """Return the base settings with an 8-pixel, width-4 encoder."""
    config = base.get_config()
    config.model.name = "resnet6"
    config.model.width = 4
    config.model.embedding_dim = 16
    config.data.image_size = 8
    config.batch_size = 16
    config.update_from_flattened_dict(changes)
    return config


def slots_of(config):
    """Return the images of an instance that the settings' objective looks at."""
    return make_objective(config, 1).slots


def random_batch(config, step, num_examples=NUM_EXAMPLES):
    """Return a batch of noise, three images of an instance alike: by `step` alone."""
    rng = np.random.default_rng(step)
    size = config.batch_size
    images = rng.normal(size=(size, 8, 8, 3))
    batch = {
        name: (images + 0.3 * rng.normal(size=images.shape)).astype(np.float32)
        for name in ("view1", "view2", "mixed")
    }
    batch["index"] = rng.permutation(num_examples)[:size].astype(np.int32)
    batch["partner"] = rng.permutation(size).astype(np.int32)
    batch["ratio"] = np.full(size, rng.uniform(), np.float32)
    return batch


class SmallRun:
    """Encoder, optimiser, state and step on some of the devices."""

    def __init__(self, config=None, devices=1, num_examples=NUM_EXAMPLES):
        self.config = config or small_config()
        self.num_examples = num_examples
        self.mesh = sharding.make_mesh(jax.devices()[:devices])
        objective = make_objective(self.config, num_examples, self.mesh)
        self.parts = Parts(
            config=self.config,
            mesh=self.mesh,
            objective=objective,
            encoder=make_encoder(self.config, passes_of(objective.slots)),
            tx=make_optimizer(self.config, STEPS_PER_EPOCH),
            schedule=make_schedule(self.config, STEPS_PER_EPOCH),
        )
        self.encoder, self.tx = self.parts.encoder, self.parts.tx
        self.pure_step = self.parts.step()

    def create(self):
        return self.parts.create_state()

    def abstract(self, meta=None):
        return self.parts.abstract_state()

    def compiled(self, state):
        return compile_train_step(self.pure_step, state, self.mesh)

    def put(self, step):
        batch = random_batch(self.config, step, self.num_examples)
        return sharding.put_batch(batch, self.mesh)
