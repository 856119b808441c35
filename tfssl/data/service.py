"""Examples made by other machines: the tf.data service, for hosts whose processors cannot feed
their accelerators.

Each epoch is handed out in parts to whichever worker is free, so every image comes once per epoch,
in an order that nobody knows.
"""

from __future__ import annotations

import functools
import re
import socket
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from tfssl.data.sources.base import Source
from tfssl.errors import UserError


def check(address: str, timeout: float = 60.0) -> None:
    """Wait until the service at an address has delivered a first example; do nothing for an empty
    address.

    Args:
      address: "grpc://HOST:PORT" of the dispatcher.
      timeout: seconds that it may take.

    Raises:
      UserError: it is no such address; nobody listens there, or no worker delivers, in that time.
    """
    if not address:
        return
    parts = re.fullmatch(r"grpc://\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if not parts:
        raise UserError(f"--data_service={address}: give grpc://HOST:PORT of the dispatcher")
    end = time.monotonic() + timeout
    more = f"within {timeout:g} s (--data_service_timeout)"
    while True:
        try:  # a plain connection first: TensorFlow's own attempt cannot be ended
            socket.create_connection(
                (parts[1], int(parts[2])), max(0.1, min(5, end - time.monotonic()))
            ).close()
            break
        except (OSError, OverflowError, UnicodeError) as e:
            if time.monotonic() > end:
                raise UserError(
                    f"--data_service={address}: nobody listens there {more}: {e}; python -m "
                    "tfssl.data_service starts one"
                ) from e
            time.sleep(min(0.5, timeout / 10))
    arrived: list[int | Exception] = []
    asking = threading.Thread(target=_ask, args=(address, arrived), daemon=True)
    asking.start()
    asking.join(max(0.1, end - time.monotonic()))
    if arrived != [0]:
        reason = f": {arrived[0]}" if arrived else ""
        raise UserError(
            f"--data_service={address}: it has not delivered an example {more}{reason}; each "
            "machine that decodes images runs python -m "
            f"tfssl.data_service --dispatcher={address}"
        )


def _ask(address: str, arrived: list[int | Exception]) -> None:
    """Append to `arrived` the one element 0 of a data set that the service's workers make, or what
    went wrong."""
    service = tf.data.experimental.service
    try:
        one = tf.data.Dataset.range(1).apply(
            service.distribute(service.ShardingPolicy.OFF, address)
        )
        arrived.append(int(next(iter(one))))
    except (tf.errors.OpError, ValueError, StopIteration) as e:
        arrived.append(e)


def examples(
    source: Source,
    load: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    seed: int,
    first_epoch: int,
    epochs: int,
    address: str,
    job: str | None = None,
) -> tf.data.Dataset:
    """What `load(record)` makes of the records of a source, computed by the workers of a tf.data
    service.

    Args:
      source: a `tfssl.data.Source`; the workers have to see its files under the same names.
      load: graph code; unreadable images, for which it fails, are left out and named in the
        worker's log.
      seed: of the order, as far as there is one.
      first_epoch: data epoch to begin with.
      epochs: how many.
      address: "grpc://HOST:PORT" of the dispatcher.
      job: a name that several consumers share, each of whom then gets a part of every epoch; None:
        this one gets all.

    Returns:
      A data set, epoch after epoch.
    """
    service = tf.data.experimental.service

    def part(epoch: int) -> tf.data.Dataset:
        return source.shardable_epoch(seed, tf.constant(epoch, tf.int64)).map(
            load, tf.data.AUTOTUNE
        )

    policy, spec = service.ShardingPolicy.DYNAMIC, part(0).element_spec
    names = {epoch: job and f"{job}-{epoch}" for epoch in range(first_epoch, first_epoch + epochs)}
    ids = {
        epoch: service.register_dataset(
            address, part(epoch).ignore_errors(log_warning=True), dataset_id=name
        )
        for epoch, name in names.items()
    }
    if job is None:
        ids = tf.data.Dataset.from_tensor_slices(tf.stack(list(ids.values())))
        return ids.flat_map(
            lambda dataset_id: service.from_dataset_id(policy, address, dataset_id, spec)
        )
    shared = (
        service.from_dataset_id(policy, address, ids[e], spec, job_name=name)
        for e, name in names.items()
    )
    return functools.reduce(tf.data.Dataset.concatenate, shared)
