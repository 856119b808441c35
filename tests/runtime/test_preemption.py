"""Signals within one process; whole runs that are stopped and go on are in tests/test_train.py and
tests/test_workers.py."""

import os
import signal

import pytest
import tensorflow as tf

import tfssl
from tfssl import pretext
from tfssl.runtime.preemption import STATUS, Preempted, Preemption


def stopped_by(number, when, photos):
    """The exception that ends a fit to which the signal is sent `when` a Keras event comes, and the
    saves it led to."""
    network = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(3, 3, 2), tf.keras.layers.GlobalAveragePooling2D()]
    )
    model = pretext.build("rotation", network, image_size=16)
    model.compile(tf.keras.optimizers.SGD(0.1))
    source = tfssl.open_source(f"folder:{photos}")
    saves = []
    send = tf.keras.callbacks.LambdaCallback()
    setattr(send, when, lambda *_: os.kill(os.getpid(), number))
    stop = Preemption(lambda: saves.append("saved"), lambda: 7, tf.distribute.get_strategy())
    with pytest.raises((Preempted, KeyboardInterrupt)) as caught:
        model.fit(
            model.dataset(source, 8, steps=4), epochs=2, steps_per_epoch=2, verbose=0, callbacks=[send, stop],
            validation_data=model.evaluation_dataset(source, 8), validation_steps=6,
        )  # fmt: skip
    return caught.value, saves


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["on_train_batch_begin", "on_test_batch_begin"])
def test_a_signal_saves_once_and_gives_its_handler_back(number, when, photos):
    if signal.getsignal(number) == signal.SIG_IGN:  # as under nohup
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    error, saves = stopped_by(number, when, photos)
    assert saves == ["saved"]
    assert (
        str(error)
        == f"{signal.Signals(number).name}: stopped after step 7, which is saved; the same command goes on from there"
    )
    assert error.status == STATUS == 75
    assert signal.getsignal(number) is before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Preemption(lambda: None, lambda: 0, tf.distribute.get_strategy())
        stop.on_train_begin()
        os.kill(os.getpid(), signal.SIGHUP)
        stop.on_train_end()
        assert stop.told is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_does_not_wait(photos):
    stop = Preemption(lambda: None, lambda: 0, tf.distribute.get_strategy())
    stop.on_train_begin()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 0.1)
    finally:
        stop.on_train_end()
