"""Prepare images on other machines: one dispatcher, and as many workers as it takes, feed
`tfssl-train --data_service=grpc://HOST:PORT`.

  python -m tfssl.data_service --listen=all --port=5050
      on one machine: the dispatcher
  python -m tfssl.data_service --listen=all --dispatcher=grpc://HOST:5050 --host=THIS
      on each machine that decodes images: a worker

Workers read the images under the names that the training run uses, so that these have to be on
gs:// or a shared file system. Nobody is asked who he is: whoever reaches a port of the service can
run TensorFlow's graphs there, which read and write files. By itself it listens to its own machine
alone; --listen=all is for networks in which all are trusted, or behind a firewall (see
SECURITY.md).
"""

import os
import socket
import stat
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfssl.errors import UserError, one_line
from tfssl.runtime import cli

FLAGS = flags.FLAGS

with cli.section("Server"):
    flags.DEFINE_integer("port", 0, "Where to listen; 0: any free port, which is printed.")
    flags.DEFINE_enum(
        "listen",
        "loopback",
        ("loopback", "all"),
        "To this machine alone, or on all interfaces, unauthenticated.",
    )
    flags.DEFINE_string("dispatcher", "", "grpc://HOST:PORT to work for; empty: be the dispatcher.")
    flags.DEFINE_string(
        "host",
        "",
        "Worker: this machine's name or address as the training hosts see it. Default: localhost.",
    )


def main(_: Sequence[str]) -> None:
    server = start(FLAGS.port, FLAGS.dispatcher, FLAGS.host, FLAGS.listen)
    server.join()


def start(port: int = 0, dispatcher: str = "", host: str = "", listen: str = "loopback") -> Any:
    """A running `DispatchServer`, or a `WorkerServer` where `dispatcher`, an address, is given.

    Args:
      port: where it listens; 0: any free one.
      dispatcher: "grpc://HOST:PORT" to work for.
      host: this machine's name or address, as training hosts elsewhere see it.
      listen: "loopback": this process's ports answer this machine alone; "all": whoever reaches
        them, unauthenticated.

    Raises:
      UserError: the port is taken, nobody answers at the address, or the system cannot keep others
        out.
    """
    import tensorflow as tf

    if host and listen == "loopback":
        raise UserError(
            f"--host={host} is where other machines find this one, which listens to itself alone: "
            "--listen=all"
        )
    service = tf.data.experimental.service
    protocol, _, address = dispatcher.rpartition("://")
    try:
        if not dispatcher:
            server = service.DispatchServer(service.DispatcherConfig(port=port))
        else:
            settings = {
                "protocol": protocol or "grpc",
                "port": port,
                "dispatcher_timeout_ms": 60_000,
            }
            if host:
                settings["worker_address"] = f"{host}:%port%"
            server = service.WorkerServer(service.WorkerConfig(address, **settings))
    except (tf.errors.OpError, RuntimeError) as e:
        raise UserError(
            f"cannot serve on port {port or 'any'} for {dispatcher or 'training runs'}: "
            f"{one_line(e)}"
        ) from e
    if listen == "loopback":
        _listen_to_this_machine()
    else:
        print(
            "listening on all interfaces without asking who calls: whoever reaches the port can "
            "read and write files as this user; let a "
            "firewall admit the hosts of the run alone (SECURITY.md)",
            file=sys.stderr,
            flush=True,
        )
    print(
        f"worker for {dispatcher}" if dispatcher else f"dispatcher at {server.target}", flush=True
    )
    return server


def _listen_to_this_machine() -> None:
    """Bind the listening sockets of this process to the loopback device: TensorFlow opens them on
    all, and has no setting for it."""
    try:
        for number in os.listdir("/proc/self/fd"):
            if not _is_socket(int(number)):
                continue
            with socket.socket(fileno=os.dup(int(number))) as one:
                internet = one.family in (socket.AF_INET, socket.AF_INET6)
                if internet and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    except (
        OSError,
        AttributeError,
    ) as e:  # another system than Linux, or before 5.7 without the right to
        raise UserError(
            f"this system cannot keep the service to this machine ({one_line(e)}): --listen=all, "
            "behind a firewall"
        ) from e


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:  # closed by now
        return False


if __name__ == "__main__":
    cli.run(main, "python -m tfssl.data_service")
