"""Strategies by name, and batches that must divide."""

import json
import socket
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tfssl.errors import UserError
from tfssl.runtime import strategy as strategies


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(replicas):
    strategies.check_batch(replicas, 8)
    with pytest.raises(
        UserError, match="--batch_size=9 does not divide over 2 replicas: use 8 or 10"
    ):
        strategies.check_batch(replicas, 9)
    with pytest.raises(UserError, match="use 2$"):
        strategies.check_batch(replicas, 1)


def test_names():
    assert strategies.build("default").num_replicas_in_sync == 1
    assert strategies.build("auto").num_replicas_in_sync == 1  # no GPU here: one device
    assert (
        strategies.build("mirrored").num_replicas_in_sync
        == len(tf.config.list_logical_devices("CPU"))
        == 2
    )
    with pytest.raises(UserError, match="auto, default, mirrored, multi_worker, tpu"):
        strategies.build("miror")


def test_steps_are_optimized_though_input_is_not(optimized):
    """A convolution, its bias and ReLU become one operation; and the user's choice stays."""
    strategies.build("default")
    assert not tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer")

    @tf.function
    def step(x, kernel, bias):
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))

    context.enable_run_metadata()
    step(tf.ones([2, 8, 8, 3]), tf.ones([3, 3, 3, 4]), tf.ones([4]))
    graphs = context.export_run_metadata().partition_graphs
    context.disable_run_metadata()
    ops = {node.op for graph in graphs for node in graph.node}
    assert any("FusedConv2D" in op for op in ops) and "Relu" not in ops, ops
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategies.build("default")
    assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]


def test_multi_worker_needs_its_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="TF_CONFIG"):
        strategies.build("multi_worker")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{cluster: worker}",
        "[1, 2]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": [1]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_tf_config_that_does_not_say_who_is_who(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(
        UserError, match='TF_CONFIG does not .*"task": {"type": "worker", "index": 0}'
    ):
        strategies.build("multi_worker")


def test_a_strategy_that_does_not_use_tf_config_says_so(monkeypatch, capfd):
    monkeypatch.setenv(
        "TF_CONFIG",
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}',
    )
    strategies.build("default")
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        "TF_CONFIG" in line and "--strategy=default" in line and "--strategy=multi_worker" in line
    )
    monkeypatch.delenv("TF_CONFIG")
    strategies.build("default")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "strategy, capabilities, bfloat16, expected",
    [
        ("tpu", [], False, "mixed_bfloat16"),
        ("auto", [(8, 0)], False, "mixed_bfloat16"),  # A100
        ("auto", [(9, 0), (9, 0)], False, "mixed_bfloat16"),  # H100
        ("auto", [(7, 0)], True, "float32"),  # V100: float16 alone
        ("mirrored", [(8, 6), (7, 5)], True, "float32"),  # all have to
        ("auto", [], True, "mixed_bfloat16"),
        ("auto", [], False, "float32"),
    ],
)
def test_auto_precision_is_what_the_device_computes_in(
    strategy, capabilities, bfloat16, expected, monkeypatch
):
    """NVIDIA's CUDA programming guide: bfloat16 from compute capability 8.0 on."""
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: capabilities if kind == "GPU" else []
    )
    monkeypatch.setattr(strategies, "_compute_capability", lambda gpu: gpu)
    monkeypatch.setattr(strategies.processor, "bfloat16_here", lambda: bfloat16)
    precision, why = strategies.auto_precision(strategy)
    assert precision == expected and why
    # What is chosen is never emulated; on a processor alone, what it lacks is.
    assert strategies.emulated(precision, strategy) is None
    alone = strategy != "tpu" and not capabilities
    assert bool(strategies.emulated("mixed_float16", strategy)) == alone
    assert bool(strategies.emulated("mixed_bfloat16", strategy)) == (alone and not bfloat16)


@pytest.mark.parametrize("step, exchange", [(0.1, 0.0005), (0.1, 0.01), (2.0, 0.01), (0.003, 0.02)])
def test_workers_agree_seldom_and_learn_of_it_after_the_same_step(step, exchange, monkeypatch):
    """Three workers in threads that meet at each exchange, each with a clock: it takes less than a
    hundredth of the time, and what one was told all hear in the same step, within five seconds."""
    workers, steps, told_at = 3, int(60 / step), int(40 / step)
    clocks, sums, barrier = [0.0] * workers, {}, threading.Barrier(workers)
    monkeypatch.setattr(strategies, "several_workers", lambda strategy: True)
    strategy = types.SimpleNamespace(extended=types.SimpleNamespace(_num_workers=workers))
    heard, spent, steps = {}, [0.0] * workers, min(steps, 4000)
    told_at = min(told_at, steps // 2)

    def run(me):
        def add(numbers):
            sums[me] = np.array(numbers)
            barrier.wait(20)
            total = sum(sums.values())
            barrier.wait(20)
            clocks[me] += exchange * (1 + 0.5 * me)  # they do not measure the same
            spent[me] += exchange * (1 + 0.5 * me)
            return total

        agreement = strategies.Agreement(strategy, lambda: clocks[me])
        agreement._sum = add
        for number in range(steps):
            clocks[me] += step
            if agreement(1 if me == 1 and number >= told_at else 0):
                heard[me] = number
                return

    threads = [threading.Thread(target=run, args=(me,)) for me in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(heard) == workers and len(set(heard.values())) == 1
    assert (heard[0] - told_at) * step <= 5 + step
    assert max(spent) < 0.01 * clocks[0] + 4 * 2 * exchange  # the first ones follow each other


def test_one_process_hears_at_once():
    agreement = strategies.Agreement(tf.distribute.get_strategy())
    assert [bool(agreement(value)) for value in (0, 0, 1)] == [False, False, True]


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}',
    ],
)
def test_a_bad_tf_config_is_one_line(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(
        UserError, match="TF_CONFIG does not say which of which hosts this is.*it has the form"
    ):
        strategies.build("multi_worker")


def test_missing_hosts_are_named_and_given_up_and_busy_ports_told(monkeypatch, capsys):
    """The second of three answers; the third is named while it does not."""
    servers = [socket.create_server(("localhost", 0)) for _ in range(3)]
    ports = [server.getsockname()[1] for server in servers]
    config = {
        "cluster": {"worker": [f"localhost:{port}" for port in ports]},
        "task": {"type": "worker", "index": 0},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    monkeypatch.setattr(strategies, "REMIND", 0.2)
    with pytest.raises(UserError, match=rf"port {ports[0]} of worker 0 .*in use"):
        strategies._wait_for_hosts(1)
    servers[0].close()
    servers[2].close()
    with pytest.raises(
        UserError, match=rf"^worker 2 \(localhost:{ports[2]}\): not there after 1 s"
    ):
        strategies._wait_for_hosts(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(
        f"s for worker 2 (localhost:{ports[2]}); it ends after 1 s" in line for line in lines
    )
    with socket.create_server(("localhost", ports[2])):
        strategies._wait_for_hosts(1)
    servers[1].close()
