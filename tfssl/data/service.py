"""Examples made by other machines: the tf.data service, for hosts whose processors cannot feed their accelerators.

Each epoch is handed out in parts to whichever worker is free, so every image comes once per epoch, in an order that nobody knows.
"""

import functools

import tensorflow as tf


def examples(source, load, seed, first_epoch, epochs, address, job=None):
    """What `load(record)` makes of the records of a source, computed by the workers of a tf.data service.

    Args:
      source: a `tfssl.data.Source`; the workers have to see its files under the same names.
      load: graph code; unreadable images, for which it fails, are left out and named in the worker's log.
      seed: of the order, as far as there is one.
      first_epoch: data epoch to begin with.
      epochs: how many.
      address: "grpc://HOST:PORT" of the dispatcher.
      job: a name that several consumers share, each of whom then gets a part of every epoch; None: this one gets all.

    Returns:
      A data set, epoch after epoch.
    """
    service = tf.data.experimental.service

    def part(epoch):
        return source.epoch_to_share(seed, tf.constant(epoch, tf.int64)).map(load, tf.data.AUTOTUNE)

    policy, spec = service.ShardingPolicy.DYNAMIC, part(0).element_spec
    names = {epoch: job and f"{job}-{epoch}" for epoch in range(first_epoch, first_epoch + epochs)}
    ids = {
        epoch: service.register_dataset(address, part(epoch).ignore_errors(log_warning=True), dataset_id=name)
        for epoch, name in names.items()
    }
    if job is None:
        ids = tf.data.Dataset.from_tensor_slices(tf.stack(list(ids.values())))
        return ids.flat_map(lambda dataset_id: service.from_dataset_id(policy, address, dataset_id, spec))
    shared = (service.from_dataset_id(policy, address, ids[e], spec, job_name=name) for e, name in names.items())
    return functools.reduce(tf.data.Dataset.concatenate, shared)
