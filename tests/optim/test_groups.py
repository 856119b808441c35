"""Groups learn as variables of an optimizer of their own would; what is forgotten is as before the
first step."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import optim
from tfssl.errors import UserError
from tfssl.optim.groups import Group, apart, at_peak, check, use

GRADIENTS = (
    np.random.default_rng(0).normal(size=[5, 2, 3, 4]).astype(np.float32)
)  # steps, variables, a matrix


def variables():
    return [
        tf.Variable(np.full([3, 4], value, np.float32), name=f"kernel{value}")
        for value in (1.0, 2.0)
    ]


def build(name, rate, own):
    optimizer = optim.build(
        name, rate, momentum=0.9, weight_decay=0.01 if name.startswith("lar") else 0.0
    )
    optim.tell_kernels(optimizer, lambda: own, lambda: own)
    return optimizer


def trained(optimizers, own, step=lambda optimizer, pairs: optimizer.apply_gradients(pairs)):
    """The variables after each of the steps; optimizers: of each variable."""
    history = []
    for gradients in GRADIENTS:
        pairs = [(tf.constant(g), v) for g, v in zip(gradients, own)]
        if optimizers[0] is optimizers[1]:
            step(optimizers[0], pairs)
        else:
            for optimizer, pair in zip(optimizers, pairs):
                optimizer.apply_gradients([pair])
        history.append([v.numpy() for v in own])
    return np.array(history)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "lars", "lars_byol", "larc"])
def test_a_groups_rate_is_that_of_an_optimizer_of_its_own(name):
    """Adam divides a gradient by its size, and the momentum of SGD and of SimCLR's LARS is made of
    rates: still bit by bit."""
    schedule = optim.schedule("cosine", 0.2, 6)
    own = variables()
    together = build(name, schedule, own)
    use(together, [Group(own[:1]), Group(own[1:], rate=4.0)])
    together.build(own)
    alone = variables()
    apart_ = [build(name, optim.schedule("cosine", peak, 6), alone) for peak in (0.2, 0.8)]
    for optimizer, variable in zip(apart_, alone):
        optimizer.build([variable])
    np.testing.assert_array_equal(trained([together] * 2, own), trained(apart_, alone))
    assert float(together.learning_rate) == float(
        apart_[0].learning_rate
    )  # outside of a step, and in the log
    assert (
        len(together.variables) == len(apart_[0].variables) + len(apart_[1].variables) - 1
    )  # one counter of steps, and nothing is added


@pytest.mark.parametrize("name", ["nesterov", "adam"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_groups_schedule_takes_the_place_of_the_runs(name, scaled):
    """At the peak throughout, from a warm-up's first step, at which the run's rate is 0; in a
    graph; within loss scaling."""
    own, alone = variables(), variables()
    optimizer = build(name, optim.schedule("cosine", 0.3, 6, warmup_steps=2), own)
    outer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer) if scaled else optimizer
    use(outer, [Group(own[:1]), Group(own[1:], schedule=at_peak(outer))])
    optim.create_slots(outer, own)

    @tf.function
    def step(*gradients):
        if scaled:
            gradients = outer.get_unscaled_gradients([g * outer.loss_scale for g in gradients])
        outer.apply_gradients(list(zip(gradients, own)))

    together = trained([outer] * 2, own, lambda _, pairs: step(*(g for g, _ in pairs)))
    expected = trained(
        [
            build(name, optim.schedule("cosine", 0.3, 6, warmup_steps=2), alone),
            build(name, 0.3, alone),
        ],
        alone,
    )
    np.testing.assert_allclose(together, expected, rtol=1e-6)
    np.testing.assert_array_equal(together[0, 0], 1.0)
    assert at_peak(tf.keras.optimizers.SGD(0.1)) is None


@pytest.mark.parametrize("name", ["adamw", "nesterov", "lars"])
def test_a_group_that_waits_has_warm_moments(name):
    """With a gradient of 1 throughout, an AdamW that knows it moves by its rate from the first step
    after the wait on; one whose gradients were 0 would move by 3 to 6 times as much. SGD's momentum,
    made of rates, begins as in a fresh run."""
    own, fresh = variables(), variables()
    waiting = build(name, 0.01, own)
    use(
        waiting, [Group(own[:1]), Group(own[1:], rate=lambda step: tf.cast(step >= 40, tf.float32))]
    )
    waiting.build(own)
    gradient = tf.ones([3, 4])
    start = own[1].numpy()
    for _ in range(40):
        waiting.apply_gradients([(gradient, v) for v in own])
    np.testing.assert_array_equal(own[1], start)
    assert np.abs(own[0].numpy() - start).max() > 0.1 or name == "lars"
    alone = build(name, 0.01, fresh[1:])
    alone.build(fresh[1:])
    for _ in range(10):
        waiting.apply_gradients([(gradient, v) for v in own])
        alone.apply_gradients([(gradient, fresh[1])])
    np.testing.assert_allclose(own[1], fresh[1], rtol=1e-5)


def test_groups_on_replicas(replicas):
    with replicas.scope():
        own = variables()
        optimizer = tf.keras.optimizers.Adam(0.1)
        use(optimizer, [Group(own[:1]), Group(own[1:], rate=2.0)])
        optim.create_slots(optimizer, own)

    @tf.function
    def step():
        replicas.run(lambda: optimizer.apply_gradients([(tf.ones([3, 4]), v) for v in own]))

    step()
    np.testing.assert_allclose(
        [v.numpy()[0, 0] for v in own], [0.9, 1.8], rtol=1e-5
    )  # Adam's first step is the rate


def test_groups_can_be_taken_back():
    own = variables()
    optimizer = tf.keras.optimizers.SGD(0.5)
    use(optimizer, [Group(own, rate=2.0)])
    use(optimizer, [Group(own)])
    assert type(optimizer) is tf.keras.optimizers.SGD
    optimizer.apply_gradients([(tf.ones([3, 4]), own[0])])
    assert own[0].numpy()[0, 0] == 0.5


def test_a_learning_rate_can_be_set():
    own = variables()
    optimizer = tf.keras.optimizers.SGD(0.5)
    use(optimizer, [Group(own, rate=2.0)])
    optimizer.learning_rate = 0.25
    optimizer.apply_gradients([(tf.ones([3, 4]), own[0])])
    assert own[0].numpy()[0, 0] == 0.5 and float(optimizer.learning_rate) == 0.25


def test_partition():
    a, b = variables()
    groups = apart([Group([a, b])], Group([b], rate=2.0))
    assert [[v.name for v in g.variables] for g in groups] == [[a.name], [b.name]] and groups[
        1
    ].rate == 2
    assert len(apart([Group([a])], Group([]))) == 1
    check(groups, [a, b])
    for wrong, message in (
        ([Group([a])], "in no group"),
        ([Group([a, b]), Group([b])], "in two groups"),
    ):
        with pytest.raises(UserError, match=message):
            check(wrong, [a, b])
    with pytest.raises(UserError, match="not trainable"):
        check([Group([a, b])], [a])


def test_what_an_optimizer_cannot_do_is_refused():
    own = variables()
    with pytest.raises(UserError, match="carries out the weight decay itself"):
        use(optim.build("lars", 0.1, weight_decay=0.1), [Group(own, decay=0.5)])
    with pytest.raises(UserError, match="one rate for all variables"):
        use(tf.keras.optimizers.legacy.SGD(0.1), [Group(own, rate=2.0)])
    use(tf.keras.optimizers.legacy.SGD(0.1), [Group(own)])


def test_forgotten_momentum_is_none():
    """v <- m 0 - r g: plain gradient descent, of the variables that are named."""
    own, plain = variables(), variables()
    with_momentum, without = (
        tf.keras.optimizers.SGD(0.1, momentum=0.9),
        tf.keras.optimizers.SGD(0.1),
    )
    with_momentum.build(own)
    for gradients in GRADIENTS:
        for optimizer, group in ((with_momentum, own), (without, plain)):
            optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients, group)])
        optim.forget(with_momentum, own[:1])
    np.testing.assert_allclose(own[0], plain[0], rtol=1e-6)
    assert not np.allclose(own[1], plain[1], rtol=1e-3)


def test_forgotten_moments(replicas):
    """Both of Adam's, on all replicas; the steps are counted on."""
    with replicas.scope():
        own = variables()
        optimizer = tf.keras.optimizers.Adam(0.1)
        optim.create_slots(optimizer, own)
    replicas.run(lambda: optimizer.apply_gradients([(tf.ones([3, 4]), v) for v in own]))
    with replicas.scope():
        optim.forget(optimizer, own[:1])
    state = {v.name: v.numpy() for v in optimizer.variables}
    slots = {name: value for name, value in state.items() if "kernel" in name}
    assert len(slots) == 4
    for name, value in slots.items():
        assert (value == 0).all() == ("kernel1.0" in name), name
    assert optimizer.iterations.numpy() == 1
