"""Where a run computes: the distribution strategy, its input, precision and determinism."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfssl.config.schema import Inference
from tfssl.errors import UserError, check_choice, one_line
from tfssl.runtime import processor

NAMES = ("auto", "default", "mirrored", "multi_worker", "tpu")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_THREADS = 64  # hosts that are asked at once
REMIND = 30  # seconds between lines that name the hosts which are waited for

_Source = TypeVar("_Source", contravariant=True)


class EvaluationBatches(Protocol[_Source]):
    """What makes the batches of one pass over a source; its arguments are those of
    `data.pipeline`."""

    def evaluation_dataset(
        self, source: _Source, batch_size: int, **pipeline: Any
    ) -> tf.data.Dataset: ...


class Batches(EvaluationBatches[_Source], Protocol[_Source]):
    """And of a training: a task."""

    def dataset(
        self,
        source: _Source,
        batch_size: int,
        seed: int,
        start_step: int,
        steps: int | None,
        **pipeline: Any,
    ) -> tf.data.Dataset: ...


def start(seed: int = 0, precision: str = "float32", deterministic: bool = False) -> None:
    """Process-wide settings; call it before any variable exists.

    Args:
      seed: of weight initialization.
      precision: Keras's policy, one of PRECISIONS; variables, losses and normalizations stay
        float32.
      deterministic: every op gives the same bits in every run on the same hardware.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.keras.mixed_precision.set_global_policy(precision)
    tf.keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def auto_precision(strategy: str = "auto") -> tuple[str, str]:
    """The fastest of PRECISIONS that needs no loss scaling, on the devices of a strategy:
    (precision, why).

    mixed_bfloat16 on TPUs, on GPUs of compute capability 8 and more, and on processors that
    multiply it in hardware; else float32. GPUs of capability 7 have float16 alone, which can
    overflow: it is for the user to ask for.
    """
    if strategy == "tpu":
        return "mixed_bfloat16", "a TPU"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = min(_compute_capability(gpu) for gpu in gpus)
        text = f"a GPU of compute capability {'.'.join(map(str, capability))}"
        return "mixed_bfloat16" if capability >= (8,) else "float32", text
    if processor.bfloat16_here():
        return "mixed_bfloat16", "a processor with bfloat16"
    return "float32", "a processor without bfloat16"


def emulated(precision: str, strategy: str = "auto") -> str | None:
    """One line on what a precision costs that the processor has to emulate, or None where it does
    not."""
    if precision == "float32" or strategy == "tpu" or tf.config.list_physical_devices("GPU"):
        return None
    if precision == "mixed_bfloat16" and processor.bfloat16_here():
        return None
    return (
        f"--precision={precision} is emulated on this processor, up to 16 times slower than "
        "float32 (1.7 images/s for 27: rotation, a "
        "quarter-width ResNet-18); --precision=auto takes what is fast"
    )


class Share(NamedTuple):
    """A process's part of work that several do by themselves.

    Attributes:
      number: of the process, from 0.
      hosts: what a person would call them, in order.
      timeout: seconds without progress of another one, after which the first one gives up.
    """

    number: int = 0
    hosts: tuple[str, ...] = ("this host",)
    timeout: float = 600


def for_inference(settings: Inference) -> tuple[tf.distribute.Strategy, str, Share]:
    """(strategy, one of PRECISIONS, share) that settings ask for.

    The hosts of multi_worker infer each by itself, on all of its GPUs: nothing is trained, and so
    nothing exchanged.

    Raises:
      UserError: see `build`.
    """
    name, precision, share = settings.strategy, settings.precision, Share()
    check_choice("--strategy", name, NAMES)
    check_choice("--precision", precision, ("auto", *PRECISIONS))
    if name == "multi_worker":
        _own_address(_configured())
        hosts, number = _hosts()
        strategy = _of_this_host("auto")
        share = Share(number, tuple(host for host, _ in hosts), settings.host_timeout)
    else:
        strategy = build(name, settings.tpu, settings.tpu_zone, settings.gcp_project)
    if precision == "auto":
        precision, why = auto_precision(name)
        print(f"--precision=auto: {precision} ({why})", flush=True)
    costly = emulated(precision, name)
    if costly:
        print(costly, file=sys.stderr, flush=True)
    return strategy, precision, share


def _configured() -> str:
    """TF_CONFIG.

    Raises:
      UserError: it is missing.
    """
    if "TF_CONFIG" not in os.environ:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, which names the "
            "hosts and this one's index"
        )
    return os.environ["TF_CONFIG"]


def _compute_capability(gpu: tf.config.PhysicalDevice) -> tuple[int, int]:
    return tf.config.experimental.get_device_details(gpu).get("compute_capability") or (0, 0)


def build(
    name: str = "auto",
    tpu: str = "",
    tpu_zone: str | None = None,
    gcp_project: str | None = None,
    host_timeout: float = 600,
) -> tf.distribute.Strategy:
    """A `tf.distribute.Strategy`.

    Args:
      name: "auto": all GPUs, else the one device; "default": one device; "mirrored": all GPUs of
        this host; "multi_worker": the hosts of TF_CONFIG; "tpu": a TPU.
      tpu: the TPU's name or address; "local" on a TPU VM, also the default.
      tpu_zone, gcp_project: where a TPU of that name is, if not where this machine is.
      host_timeout: seconds to wait for the other hosts of TF_CONFIG; they are named every 30 s.

    Raises:
      UserError: unknown name, no TPU found, no TF_CONFIG or none with a place for this process, a
        port in use, hosts that do not come.
    """
    # First of all: once TensorFlow has looked at its devices, it can join no other workers.
    if name == "multi_worker":
        address = _own_address(_configured())
        _wait_for_hosts(host_timeout)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError, ValueError) as e:
            raise UserError(f"the worker {address} of TF_CONFIG cannot start: {one_line(e)}") from e
    if os.environ.get("TF_CONFIG"):
        print(
            f"TF_CONFIG is set, and --strategy={name} does not use it: this process works by "
            "itself (--strategy=multi_worker works with "
            "the hosts that it names)",
            file=sys.stderr,
            flush=True,
        )
    return _of_this_host(name, tpu, tpu_zone, gcp_project)


def _of_this_host(
    name: str, tpu: str = "", tpu_zone: str | None = None, gcp_project: str | None = None
) -> tf.distribute.Strategy:
    gpus = _begin(name)
    if name == "default" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name == "auto":
        return tf.distribute.MirroredStrategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(
            None if gpus else [d.name for d in tf.config.list_logical_devices("CPU")]
        )
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
                tpu or "local", tpu_zone, gcp_project
            )
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        except (ValueError, tf.errors.OpError) as e:
            raise UserError(
                f"no TPU answers at --tpu={tpu or 'local'}: {str(e).splitlines()[0]}"
            ) from e
    raise UserError(f"unknown strategy {name!r}: choose one of {', '.join(NAMES)}")


def _begin(name: str) -> list[tf.config.LogicalDevice]:
    """The GPUs that TensorFlow finds; with this question it begins, and keeps by what it begins
    with.

    Where processors alone compute, the functions of input pipelines are left as they are:
    TensorFlow's graph optimizer takes two fifths of the time in which each pipeline begins, for
    batches that come a few percent faster (docs/results.md). An accelerator, which may wait for
    them, gets these; steps are optimized everywhere.
    """
    if name == "tpu" or tf.config.list_physical_devices("GPU"):
        return tf.config.list_logical_devices("GPU")
    option = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(option, False)
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        return tf.config.list_logical_devices("GPU")
    finally:
        tf.config.optimizer.set_experimental_options({option: before})


def _own_address(config: str) -> str:
    """HOST:PORT of this process in the text of TF_CONFIG.

    Raises:
      UserError: it does not have TensorFlow's form, or no such entry.
    """
    try:
        told = json.loads(config)
        job, index = str(told["task"]["type"]), int(told["task"]["index"])
        address = told["cluster"][job][index]
        if index < 0 or not re.fullmatch(r".+:\d+", address):
            raise ValueError(f"{job} {index} is {address!r}")
        return address
    except (ValueError, KeyError, IndexError, TypeError) as e:
        hosts, task = '["HOST:PORT", "HOST:PORT"]', '{"type": "worker", "index": 0}'
        form = f'{{"cluster": {{"worker": {hosts}}}, "task": {task}}}'
        raise UserError(
            f"TF_CONFIG does not say which of which hosts this is ({type(e).__name__}: "
            f"{one_line(e)}): it has the form {form}"
        ) from e


def _wait_for_hosts(timeout: float) -> None:
    """Return once all hosts of TF_CONFIG answer at their ports, this one among them.

    TensorFlow would wait for ever, in silence, and where neither a signal nor another thread is
    heard. A host that has seen all others goes on, and answers from then on by TensorFlow's own
    server, which the slower ones see.
    """
    hosts, me = _hosts()
    missing = {i: address for i, (_, address) in enumerate(hosts) if i != me}
    begun, reminded = time.monotonic(), 0.0
    port = hosts[me][1].rpartition(":")[2]
    try:
        server = socket.create_server(("", int(port)), backlog=len(hosts) + 128)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"port {port} of {hosts[me][0]}, which TF_CONFIG gives this process, is in use, or not "
            f"for it ({one_line(error)}): "
            "end the other process, or take another port on all hosts"
        ) from error
    with server, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        while True:
            answers = dict(zip(missing, pool.map(_answers, missing.values())))
            missing = {i: address for i, address in missing.items() if not answers[i]}
            waited, who = time.monotonic() - begun, ", ".join(hosts[i][0] for i in missing)
            if not missing:
                return
            if waited >= timeout:
                raise UserError(
                    f"{who}: not there after {waited:.0f} s (--host_timeout); start the same "
                    "command on each host of TF_CONFIG"
                )
            if waited >= REMIND * (reminded + 1):
                reminded = waited // REMIND
                print(
                    f"waiting since {waited:.0f} s for {who}; it ends after {timeout} s "
                    "(--host_timeout)",
                    flush=True,
                )
            time.sleep(0.5)


def _hosts() -> tuple[list[tuple[str, str]], int]:
    """([(what a person would call it, address)] of TF_CONFIG's processes, the number of this
    one)."""
    config = json.loads(os.environ["TF_CONFIG"])
    jobs = [job for job in ("chief", "worker") if job in config["cluster"]]
    hosts = [(job, i, address) for job in jobs for i, address in enumerate(config["cluster"][job])]
    me = [(job, i) for job, i, _ in hosts].index(
        (config["task"]["type"], int(config["task"]["index"]))
    )
    return [(f"{job} {i} ({address})", address) for job, i, address in hosts], me


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        return True
    except (OSError, ValueError):
        return False


def compare_hosts(strategy: tf.distribute.Strategy, facts: Mapping[str, str], here: str) -> None:
    """Refuse to go on unless all hosts have the same facts; all of them have to call it, with facts
    of the same names.

    Args:
      facts: {what: text}.
      here: what this host has, for the message.

    Raises:
      UserError: on all hosts alike; it says which differ from the first, and in what.
    """
    if not several_workers(strategy):
        return
    hosts, me = _hosts()
    numbers = np.zeros([len(hosts), len(facts), 3])  # of 16 bits, which float32 adds exactly
    for i, text in enumerate(facts.values()):
        numbers[me, i] = np.frombuffer(hashlib.sha256(text.encode()).digest()[:6], np.uint16)
    everywhere = sum_over_workers(strategy)(numbers)
    others = (everywhere != everywhere[:1]).any(2)
    if others.any():
        what = [
            f"{host}: {', '.join(name for name, differs in zip(facts, row) if differs)}"
            for (host, _), row in zip(hosts, others)
            if row.any()
        ]
        raise UserError(
            f"the hosts of this run differ from the first, {hosts[0][0]}, in what has to be the "
            f"same: {'; '.join(what)}. Here, on "
            f"{hosts[me][0]}: {here}"
        )


def check_batch(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    accumulate_steps: int = 1,
    bn_group_size: int = 0,
) -> None:
    """Raise a UserError unless `batch_size` divides over the replicas, their parts and the groups
    of batch statistics."""
    replicas = strategy.num_replicas_in_sync
    parts = {
        f"{replicas} replicas": replicas,
        f"--accumulate_steps={accumulate_steps}": accumulate_steps,
    }
    if bn_group_size:
        parts[f"groups of --bn_group_size={bn_group_size}"] = bn_group_size
    unit = math.prod(parts.values())
    if batch_size % unit:
        near = dict.fromkeys(
            b for b in (batch_size // unit * unit, -(-batch_size // unit) * unit) if b
        )
        over = " and ".join(text for text, n in parts.items() if n > 1)
        raise UserError(
            f"--batch_size={batch_size} does not divide over {over}: use "
            f"{' or '.join(map(str, near))}"
        )


def training_data(
    strategy: tf.distribute.Strategy,
    model: Batches[_Source],
    source: _Source,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    data_service: str = "",
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """The model's training batches, each replica's share its own element; `data_service` is the
    address of one that makes the examples."""
    service = (data_service, _job(strategy)) if data_service else None
    return distribute(
        strategy,
        batch_size,
        lambda **rows: model.dataset(
            source, batch_size, seed, start_step, steps, service=service, **rows
        ),
    )


def _job(strategy: tf.distribute.Strategy) -> str | None:
    """A name, of this start of this run, under which several input pipelines share a data service's
    examples; None where there is one."""
    if not several_workers(strategy) and not isinstance(strategy, tf.distribute.TPUStrategy):
        return None
    number = int.from_bytes(os.urandom(2), "big")
    if several_workers(strategy):
        number = int(sum_over_workers(strategy)(number if is_chief(strategy) else 0))
    return f"tfssl-{number}"


def distributed(strategy: tf.distribute.Strategy) -> bool:
    """Whether it takes `strategy.run` to compute where the strategy says: on several replicas, or
    on a TPU."""
    tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    return tpu or several_workers(strategy) or strategy.num_replicas_in_sync > 1


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    return strategy.extended._in_multi_worker_mode()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its run that talks and writes."""
    resolver = strategy.cluster_resolver if several_workers(strategy) else None
    if resolver is None or resolver.task_type == "chief":
        return True
    return (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def sum_over_workers(strategy: tf.distribute.Strategy) -> Callable[[npt.ArrayLike], np.ndarray]:
    """A function: numbers (of any shape) -> their sums over the worker processes (float32 array),
    which all have to call it at the same point; with one process, the numbers."""
    if not several_workers(strategy):
        return lambda value: np.asarray(value, np.float32)

    @tf.function
    def total(value: tf.Tensor) -> tf.Tensor:
        each = strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(value))
        )
        return strategy.reduce("MEAN", each, axis=None) / (strategy.num_replicas_in_sync / workers)

    workers = strategy.extended._num_workers
    return lambda value: total(tf.constant(value, tf.float32)).numpy()


class Agreement:
    """Whether any worker process was told something: a function (0 or 1) -> 0 or more, which all
    call after each step.

    They exchange it only every so many steps, between which it is 0: so many that the exchange
    takes a two-hundredth of the time, but no more than LONGEST seconds. How many, they agree on in
    the same exchange: so all of them learn of it after the same step.
    """

    SHARE, LONGEST = 0.005, 5.0

    def __init__(
        self, strategy: tf.distribute.Strategy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = strategy.extended._num_workers if several_workers(strategy) else 1
        self._sum, self._clock = sum_over_workers(strategy), clock
        self._steps = self._left = 1
        self._proposed, self._spent, self._exchanges = 1.0, 0.0, 0
        self._last: float | None = None

    def __call__(self, value: float) -> float:
        if self._workers == 1:
            return value
        self._left -= 1
        if self._left:
            return 0
        begun = self._clock()
        if self._exchanges and self._last is not None:
            pause = min(self._spent / self._exchanges / self.SHARE, self.LONGEST)
            self._proposed = max(1.0, pause * self._steps / max(begun - self._last, 1e-6))
        told, proposed = self._sum([float(value), self._proposed])
        self._steps = self._left = max(1, int(proposed / self._workers))
        ended = self._clock()
        if self._last is not None:  # the first exchange is traced
            self._spent, self._exchanges = self._spent + ended - begun, self._exchanges + 1
        self._last = ended
        return float(told)


def evaluation_data(
    strategy: tf.distribute.Strategy,
    model: EvaluationBatches[_Source],
    source: _Source,
    batch_size: int,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """One pass over `source`, likewise; `batch_size` is rounded up to a multiple of the
    replicas."""
    batch_size += -batch_size % strategy.num_replicas_in_sync
    return distribute(
        strategy, batch_size, lambda **rows: model.evaluation_dataset(source, batch_size, **rows)
    )


def distribute(
    strategy: tf.distribute.Strategy, batch_size: int, make: Callable[..., tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Global batches, each replica's share its own element; `make` takes `rows`, `chunk` and
    `endless`, as `data.pipeline` does, or nothing for all of a batch."""
    if not several_workers(strategy) and strategy.num_replicas_in_sync == 1:
        return make()

    def for_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = batch_size // context.num_input_pipelines
        first = context.input_pipeline_id * share
        return make(
            rows=(first, first + share),
            chunk=context.get_per_replica_batch_size(batch_size),
            endless=several_workers(strategy),
        )

    return strategy.distribute_datasets_from_function(for_host)
