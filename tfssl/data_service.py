"""Prepare images on other machines: one dispatcher, and as many workers as it takes, feed `tfssl-train --data_service=grpc://HOST:PORT`.

  python -m tfssl.data_service --port=5050                                     on one machine: the dispatcher
  python -m tfssl.data_service --dispatcher=grpc://HOST:5050                   on each machine that decodes images: a worker

Workers read the images under the names that the training run uses, so that these have to be on gs:// or a shared file system.
"""

from absl import flags

from tfssl.errors import UserError, one_line
from tfssl.runtime import cli

FLAGS = flags.FLAGS

with cli.section("Server"):
    flags.DEFINE_integer("port", 0, "Where to listen; 0: any free port, which is printed.")
    flags.DEFINE_string("dispatcher", "", "grpc://HOST:PORT to work for; empty: be the dispatcher.")
    flags.DEFINE_string(
        "host", "", "Worker: this machine's name or address as the training hosts see it. Default: localhost."
    )


def main(_):
    server = start(FLAGS.port, FLAGS.dispatcher, FLAGS.host)
    server.join()


def start(port=0, dispatcher="", host=""):
    """A running `DispatchServer`, or a `WorkerServer` where `dispatcher`, an address, is given.

    Raises:
      UserError: the port is taken, or nobody answers at the address.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    try:
        if not dispatcher:
            server = service.DispatchServer(service.DispatcherConfig(port=port))
            print(f"dispatcher at {server.target}", flush=True)
            return server
        protocol, _, address = dispatcher.rpartition("://")
        settings = {"protocol": protocol or "grpc", "port": port, "dispatcher_timeout_ms": 60_000}
        if host:
            settings["worker_address"] = f"{host}:%port%"
        server = service.WorkerServer(service.WorkerConfig(address, **settings))
        print(f"worker for {dispatcher}", flush=True)
        return server
    except (tf.errors.OpError, RuntimeError) as e:
        raise UserError(
            f"cannot serve on port {port or 'any'} for {dispatcher or 'training runs'}: {one_line(e)}"
        ) from e


if __name__ == "__main__":
    cli.run(main, "python -m tfssl.data_service")
