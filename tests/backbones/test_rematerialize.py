"""Recomputation is still there once XLA has optimized the step. (That gradients are equal:
pretext/test_task.py.)"""

import re

import pytest
import tensorflow as tf

from tfssl.backbones import build


def convolutions(remat):
    model = build("resnet18_v2", 1 / 4, "small", remat=remat)  # with less, some become products
    images = tf.random.stateless_uniform([4, 16, 16, 3], [0, 0])
    model(images)

    @tf.function(jit_compile=True)
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True)["pre_logits"] ** 2)
        return tape.gradient(loss, model.trainable_variables)

    given, optimized = (
        gradients.experimental_get_compiler_ir(images)(stage=s) for s in ("hlo", "optimized_hlo")
    )
    found = len(
        re.findall(r"= \S+ convolution\(|__onednn\$convolution|__eigen\$convolution", optimized)
    )
    return found, given.count(" opt-barrier(")


def test_xla_does_not_merge_the_second_pass_with_the_first():
    plain, _ = convolutions(False)
    # 20 forward; backward each one's kernel and input, less the input of the root.
    assert plain == pytest.approx(59, abs=1)
    # Of each of the eight units the first convolution is needed again; the last one's output is
    # not. On a TPU only the barriers keep the compiler from merging the passes
    # (benchmarks/tpu_compile.py showed it for tf.recompute_grad).
    again, barriers = convolutions(True)
    assert again >= plain + 8 and barriers >= 8
