"""The tf.data service: a dispatcher and two workers on loopback deliver, epoch by epoch, what a
plain run sees."""

import collections
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
import tensorflow as tf

import tfssl
from tfssl import data_service
from tfssl.data import pipeline
from tfssl.data.service import check, examples
from tfssl.errors import UserError

service = tf.data.experimental.service


@pytest.fixture(scope="module")
def address():
    dispatcher = service.DispatchServer()
    workers = [
        service.WorkerServer(
            service.WorkerConfig(dispatcher.target.split("://")[1], heartbeat_interval_ms=100)
        )
        for _ in range(2)
    ]
    yield dispatcher.target
    del workers, dispatcher


def example(fetched, seed):
    """Reads the image, and keeps what tells the draws apart."""
    image = fetched["image"]
    image = (
        tf.io.decode_image(image, 3, expand_animations=False) if image.dtype == tf.string else image
    )
    return {"image": tf.concat([tf.reshape(tf.cast(image, tf.int64), [-1])[:3], seed], 0)}


def as_tfrecord(photos, folder):
    for shard in range(3):
        with tf.io.TFRecordWriter(f"{folder}/train-{shard:05}-of-00003") as writer:
            for path in sorted(photos.rglob("*.jpg"))[shard::3]:
                data = tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature={"image/encoded": data})
                    ).SerializeToString()
                )
    return f"tfrecord:{folder}/train-*"


@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_epochs_are_those_of_a_plain_run(kind, address, photos, tmp_path):
    """48 images in batches of 16: two epochs from step 3 on, each image once in each, never twice
    with one seed."""
    source = tfssl.open_source(
        f"folder:{photos}" if kind == "folder" else as_tfrecord(photos, tmp_path)
    )
    plain, served = (
        list(
            pipeline.training_batches(
                source, example, 16, seed=5, start_step=3, steps=6, service=s
            ).as_numpy_iterator()
        )
        for s in (None, (address, None))
    )
    assert [b["number"].tolist() for b in plain] == [
        b["number"].tolist() for b in served
    ]  # places in the order
    for epoch in (slice(0, 3), slice(3, 6)):
        seen = [
            collections.Counter(np.concatenate([b["index"] for b in run[epoch]]))
            for run in (plain, served)
        ]
        assert seen[0] == seen[1] == collections.Counter(range(48))
        rows = [{tuple(row) for b in run[epoch] for row in b["image"]} for run in (plain, served)]
        assert len(rows[1]) == 48
        if kind == "folder":  # streams number their images otherwise when they are shared
            assert rows[0] == rows[1]


def test_two_consumers_share_the_epochs(address, photos):
    """Two hosts of one run: together they see every image once in each of two epochs, whoever is
    faster."""
    source = tfssl.open_source(f"folder:{photos}")
    hosts = [
        iter(
            examples(
                source, lambda record: record["number"], 0, 3, 2, address, job="a run"
            ).as_numpy_iterator()
        )
        for _ in range(2)
    ]
    seen = [[], []]
    while hosts[0] or hosts[1]:
        for i, host in enumerate(hosts):
            try:
                seen[i].append(int(next(host)) if host else None)
            except StopIteration:
                hosts[i] = None
    numbers = sorted(n for n in seen[0] + seen[1] if n is not None)
    assert numbers == list(range(3 * 48, 5 * 48))


def test_an_unreadable_image_is_left_out(address, photos, tmp_path):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    files = sorted(folder.rglob("*.jpg"))
    files[7].write_bytes(b"no image")
    source = tfssl.open_source(f"folder:{folder}")
    batches = pipeline.training_batches(source, example, 47, steps=1, service=(address, None))
    index = next(iter(batches))["index"].numpy()
    bad = next(i for i in range(48) if source.name(i).endswith(files[7].name))
    assert sorted(index) == sorted(set(range(48)) - {bad})


def test_a_service_answers(address):
    begun = time.monotonic()
    check(address, 30)
    check("", 0.1)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "grpc://", "grpc://localhost", "http://localhost:1", "grpc://a:123456"],
)
def test_what_is_no_address(address):
    with pytest.raises(UserError, match="give grpc://HOST:PORT"):
        check(address)


def _ask_those_who_do_not_answer(path):
    """In a process of its own, for TensorFlow's threads ask on: nobody; a dispatcher without
    workers; somebody who is no service."""
    alone = service.DispatchServer()
    said = []
    with socket.create_server(("localhost", 0)) as silent:
        for address in (
            "grpc://localhost:1",
            alone.target,
            f"grpc://localhost:{silent.getsockname()[1]}",
        ):
            begun = time.monotonic()
            try:
                check(address, 1.5)
            except UserError as e:
                said.append(f"{time.monotonic() - begun < 5} {e}")
    path.write_text("\n".join(said))
    os._exit(0)


def test_a_service_that_does_not_answer_is_given_up(tmp_path):
    """A line each, after the time that is granted."""
    process = runs.PROCESSES.Process(target=_ask_those_who_do_not_answer, args=(tmp_path / "said",))
    process.start()
    process.join(60)
    nobody, alone, silent = (tmp_path / "said").read_text().splitlines()
    assert nobody.startswith(
        "True --data_service=grpc://localhost:1: nobody listens there within 1.5 s "
        "(--data_service_timeout)"
    )
    for line in (alone, silent):
        assert (
            line.startswith("True --data_service=grpc://localhost:")
            and "has not delivered an example within 1.5 s" in line
        )
        assert "python -m tfssl.data_service --dispatcher=grpc://localhost:" in line


def devices_of_listeners():
    """{port: device that a listening socket of this process is bound to}."""
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith("socket:"):
            with socket.socket(fileno=os.dup(number)) as s:
                if s.family in (socket.AF_INET, socket.AF_INET6) and s.getsockopt(
                    socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                ):
                    device = s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
                    found[s.getsockname()[1]] = device.rstrip(b"\0").decode()
    return found


def test_a_service_listens_to_its_own_machine_unless_told(capfd):
    """The kernel takes connections of the device that a socket is bound to, and of no other
    (socket(7), SO_BINDTODEVICE)."""
    open_to_all = data_service.start(listen="all")
    (line,) = capfd.readouterr().err.splitlines()
    assert "on all interfaces without asking who calls" in line
    assert devices_of_listeners()[int(open_to_all.target.split(":")[-1])] == ""
    confined = data_service.start()
    worker = data_service.start(dispatcher=confined.target)
    assert capfd.readouterr().err == ""
    devices = devices_of_listeners()
    assert len(devices) >= 3 and set(devices.values()) == {"lo"}
    check(confined.target, 30)  # which this machine reaches
    del worker
    with pytest.raises(UserError, match="--host=here.*--listen=all"):
        data_service.start(host="here", dispatcher=confined.target)
    with (
        socket.create_server(("", 0)) as busy,
        pytest.raises(UserError, match="cannot serve on port"),
    ):
        data_service.start(busy.getsockname()[1])


def test_a_run_fed_by_the_binaries(photos, tmp_path, tfssl_command):
    """Dispatcher, worker and training as three processes, the way the docs say."""
    servers = []

    def serve(*flags):
        command = [sys.executable, "-m", "tfssl.data_service", *flags]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return servers[-1].stdout.readline().split()[-1]

    try:
        target = serve()
        serve(f"--dispatcher={target}")
        done = tfssl_command(
            "train", f"--dataset=folder:{photos}", f"--workdir={tmp_path}/run", f"--data_service={target}",
            "--backbone=resnet18_v2", "--width_multiplier=0.0625", "--stem=small", "--image_size=16", "--batch_size=8",
            "--train_steps=14", "--checkpoint_steps=8", "--log_steps=4",
        )  # fmt: skip
    finally:
        for server in servers:
            server.kill()
    assert done.returncode == 0, done.stderr
    assert "step 14/14" in done.stdout


def test_a_run_with_a_service_is_not_deterministic(photos, tmp_path, tfssl_command):
    done = tfssl_command(
        "train",
        f"--dataset=folder:{photos}",
        f"--workdir={tmp_path}",
        "--data_service=grpc://x:1",
        "--deterministic",
    )
    assert done.returncode == 1 and "contradicts --deterministic" in done.stderr
