"""Recomputation is still there once XLA has optimized the step. (That gradients are equal: pretext/test_base.py.)"""

import re

import pytest
import tensorflow as tf

from tfssl.backbones import build


def convolutions(remat):
    model = build("resnet18_v2", 1 / 16, "small", remat=remat)
    images = tf.random.stateless_uniform([4, 16, 16, 3], [0, 0])
    model(images)

    @tf.function(jit_compile=True)
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True)["pre_logits"] ** 2)
        return tape.gradient(loss, model.trainable_variables)

    program = gradients.experimental_get_compiler_ir(images)(stage="optimized_hlo")
    return len(re.findall(r"= \S+ convolution\(|__onednn\$convolution|__eigen\$convolution", program))


def test_xla_does_not_merge_the_second_pass_with_the_first():
    plain = convolutions(False)
    # 20 forward; backward each one's kernel and input, less the input of the root.
    assert plain == pytest.approx(59, abs=1)
    # Of each of the eight units the first convolution and the second's input are needed again; the last convolution's output is not.
    assert convolutions(True) >= plain + 8
