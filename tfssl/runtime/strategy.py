"""Where a run computes: the distribution strategy, its input, precision and determinism."""

import os

import tensorflow as tf

from tfssl.errors import UserError

NAMES = ("auto", "default", "mirrored", "multi_worker", "tpu")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def start(seed=0, precision="float32", deterministic=False):
    """Process-wide settings; call it before any variable exists.

    Args:
      seed: of weight initialisation.
      precision: Keras's policy, one of PRECISIONS; variables, losses and normalisations stay float32.
      deterministic: every op gives the same bits in every run on the same hardware.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.keras.mixed_precision.set_global_policy(precision)
    tf.keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def build(name="auto", tpu=""):
    """A `tf.distribute.Strategy`.

    Args:
      name: "auto": all GPUs, else the one device; "default": one device; "mirrored": all GPUs of this host; "multi_worker": the hosts of
        TF_CONFIG; "tpu": a TPU.
      tpu: the TPU's name or address; "local" on a TPU VM, also the default.

    Raises:
      UserError: unknown name, no TPU found, no TF_CONFIG.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "default" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name == "auto":
        return tf.distribute.MirroredStrategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(None if gpus else [d.name for d in tf.config.list_logical_devices("CPU")])
    if name == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise UserError(
                "--strategy=multi_worker needs the environment variable TF_CONFIG, which names the hosts and this one's index"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu or "local")
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        except (ValueError, tf.errors.OpError) as e:
            raise UserError(f"no TPU answers at --tpu={tpu or 'local'}: {str(e).splitlines()[0]}") from e
    raise UserError(f"unknown strategy {name!r}: choose one of {', '.join(NAMES)}")


def check_batch(strategy, batch_size):
    """Raise a UserError unless `batch_size` divides over the replicas."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        near = [b for b in (batch_size // replicas * replicas, -(-batch_size // replicas) * replicas) if b]
        raise UserError(
            f"--batch_size={batch_size} does not divide over {replicas} replicas: use {' or '.join(map(str, dict.fromkeys(near)))}"
        )


def training_data(strategy, model, source, batch_size, seed, start_step, steps):
    """The model's training batches, each replica's share its own element."""
    return _distribute(
        strategy, batch_size, lambda **rows: model.dataset(source, batch_size, seed, start_step, steps, **rows)
    )


def evaluation_data(strategy, model, source, batch_size):
    """One pass over `source`, likewise; `batch_size` is rounded up to a multiple of the replicas."""
    batch_size += -batch_size % strategy.num_replicas_in_sync
    return _distribute(strategy, batch_size, lambda **rows: model.evaluation_dataset(source, batch_size, **rows))


def _distribute(strategy, batch_size, make):
    if not strategy.extended._in_multi_worker_mode() and strategy.num_replicas_in_sync == 1:
        return make()

    def for_host(context):
        share = batch_size // context.num_input_pipelines
        first = context.input_pipeline_id * share
        return make(rows=(first, first + share), chunk=context.get_per_replica_batch_size(batch_size))

    return strategy.distribute_datasets_from_function(for_host)
