"""Two players against gradient reversal, which is the same by another way: at once, in parts,
cached, on replicas."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones
from tfssl.errors import UserError
from tfssl.optim.groups import Group, apart
from tfssl.pretext.parts.inception import InceptionImages
from tfssl.runtime import strategy as strategies

FACTOR = 0.3


@tf.custom_gradient
def reversed_gradient(x):
    """Ganin and Lempitsky, arXiv 1409.7495."""
    return x, lambda dy: -FACTOR * dy


class Reversal(InceptionImages):
    """The labels, from features that do not tell how bright an image is: the critic's gradient is reversed where it reaches them."""

    def __init__(self, backbone, **common):
        super().__init__(
            backbone, weight_decay=0.01, color=False, **common
        )  # XLA draws other colors
        self.head = tf.keras.layers.Dense(2, name="head")
        self.critic = tf.keras.layers.Dense(2, name="critic")

    def call(self, batch, training=False):
        x = self.encode(batch["image"], training)["pre_logits"]
        return self.head(x), self.critic(reversed_gradient(x))

    def both(self, batch, outputs):
        logits, guesses = outputs
        bright = tf.cast(tf.reduce_mean(batch["image"], [1, 2, 3]) > 0.5, tf.int64)
        softmax = tf.nn.sparse_softmax_cross_entropy_with_logits
        return softmax(batch["label"], logits), softmax(bright, guesses)

    def objective(self, batch, outputs):
        own, critics = self.both(batch, outputs)
        return own + critics, {}

    def chance(self):
        return {"loss": 2 * np.log(2)}


class Adversary(Reversal):
    """The same as two players."""

    def call(self, batch, training=False):
        x = self.encode(batch["image"], training)["pre_logits"]
        return self.head(x), self.critic(x)

    def objective(self, batch, outputs):
        own, critics = self.both(batch, outputs)
        return {"encoder": own - FACTOR * critics, "critic": critics}, {}

    def groups(self):
        encoder = [group._replace(player="encoder") for group in super().groups()]
        return apart(encoder, Group(self.critic.trainable_variables, player="critic"))

    def chance(self):
        own, critics = np.log(2) * (1 - FACTOR), np.log(2)
        return {"loss": own + critics, "encoder_loss": own, "critic_loss": critics}


def trained(task, photos, strategy=None, spans_batch=False, **compiled):
    strategy = strategy or tf.distribute.get_strategy()
    tf.keras.utils.set_random_seed(1)
    source = tfssl.open_source(f"folder:{photos}")
    with strategy.scope():
        network = tf.keras.Sequential(
            [tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv")]
        )
        model = task(backbones.build(network), image_size=16)
        model.spans_batch = spans_batch
        model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), **compiled)
    data = strategies.training_data(strategy, model, source, 8, 2, 0, 3)
    history = model.fit(data, steps_per_epoch=3, verbose=0).history
    return history, [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


@pytest.fixture(scope="module")
def reference(photos):
    tf.keras.backend.set_floatx("float64")
    yield trained(Reversal, photos)[1]
    tf.keras.backend.set_floatx("float32")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_steps": 2},
        {"accumulate_steps": 2, "spans_batch": True},
        {"jit_compile": True},
    ],
    ids=["plain", "accumulated", "cached", "compiled"],
)
def test_each_player_learns_from_its_own_loss(settings, reference, photos, float64):
    history, weights = trained(Adversary, photos, **settings)
    for x, y in zip(reference, weights):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    parts = history["encoder_loss"][0] + history["critic_loss"][0]
    assert history["loss"][0] == pytest.approx(parts, rel=1e-9) and parts > 0


def test_players_on_replicas(reference, photos, replicas, float64):
    for x, y in zip(reference, trained(Adversary, photos, replicas)[1]):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def test_a_player_without_a_loss_is_refused(photos):
    class Forgetful(Adversary):
        def objective(self, batch, outputs):
            return super().objective(batch, outputs)[0]["encoder"], {}

    with pytest.raises(UserError, match="losses of '', and groups.* players 'encoder', 'critic'"):
        trained(Forgetful, photos)
