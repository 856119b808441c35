"""Shared fixtures: quiet TensorFlow, and folders of images that the tests write themselves."""

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import tempfile
from multiprocessing.util import Finalize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0"
)  # the tests compile much and run little

import tfssl  # noqa: E402, F401, I001 (before TensorFlow: it chooses Keras 2)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import runs  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.python.framework.ops import gradient_registry  # noqa: E402 (there is no public way)

from tfssl.runtime import strategy as strategies  # noqa: E402

pytest_plugins = ["costs", "image_files", "saved_modules", "pytester"]

# CPU devices for the tests of replicas: two, or as many as a test that starts pytest again asks
# for. This has to be said before TensorFlow looks at its devices.
REPLICAS = int(os.environ.get("TFSSL_TEST_REPLICAS", 2))
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS
)
if sys.version_info < (3, 12):
    # TensorFlow's graph optimizer takes a seventh of the processor time of tests that trace much and
    # run little. The commands that they start have it, and the tests on the newest stack.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
strategies.build("default")  # as each command does: TensorFlow begins as it does there


def pytest_configure(config):
    """All of a test run's files, TensorFlow's own among them (killed processes leave theirs), lie
    in one folder, which goes at the end."""
    if not hasattr(config, "workerinput"):
        folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="tfssl-tests-")
        last = -200  # after multiprocessing's own files
        Finalize(None, shutil.rmtree, [folder], {"ignore_errors": True}, exitpriority=last)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Nothing outside the test's own folder is read or written."""
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFSSL_CACHE"] = folder
    yield
    os.environ.pop("TFSSL_CACHE", None)


# Tracing makes millions of objects, which Python would look through again and again. What the
# libraries made stays; the rest goes after each test that made much.
gc.freeze()
gc.set_threshold(100_000, 50, 50)


@pytest.fixture(scope="module", autouse=True)
def _tidy_after_a_file():
    yield
    _forget_graphs()
    tf.keras.backend.clear_session()
    _return_memory()


@pytest.fixture(autouse=True)
def _tidy_after_a_test():
    kept = set(gradient_registry.list())  # those that fixtures of the whole file may need again
    yield
    _forget_graphs(kept)
    new, collections, _ = gc.get_count()
    if new > 20_000 or collections:
        _return_memory()


def _forget_graphs(kept=()):
    """TensorFlow registers the gradient function of each traced `tf.custom_gradient` for the life
    of the process, and through it keeps the graph, its model and its data set: 10 to 80 MB for each
    test that trains. Its global graph keeps the functions of data sets."""
    for name in {
        name for name in gradient_registry.list() if name.startswith("CustomGradient-")
    }.difference(kept):
        del gradient_registry._registry[name]
    tf.compat.v1.reset_default_graph()


def _return_memory():
    """Unreachable objects go, and what they held goes back to the system where the C library can be
    asked (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test draws the same initial weights in every run."""
    tf.keras.utils.set_random_seed(0)


def oriented_picture(rng, size=40):
    """A random uint8 picture whose rotation can be told: bright at the top, dark at the bottom,
    with noise."""
    ramp = np.linspace(220, 30, size)[:, None, None]
    return np.clip(
        ramp + rng.normal(0, 12, [size, size, 3]) + rng.uniform(-25, 25, [1, 1, 3]), 0, 255
    ).astype(np.uint8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 48 JPEGs in two classes (warm and cold colors), unsplit."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        name = "warm" if i % 2 else "cold"
        picture = oriented_picture(rng).astype(int)
        picture[..., 0 if i % 2 else 2] += 25
        path = root / name / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            tf.io.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), quality=95).numpy()
        )
    return root


@pytest.fixture(scope="session")
def source(photos):
    """The folder's images."""
    return tfssl.open_source(f"folder:{photos}")


@pytest.fixture(scope="session")
def replicas():
    """One strategy for all tests: a second one in a process would take the first one's collective
    keys (TensorFlow 2.21)."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])


@pytest.fixture
def optimized():
    """The graph optimizer as commands have it: for what has to equal them bit by bit."""
    option = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(option, False)
    tf.config.optimizer.set_experimental_options({option: False})
    yield
    tf.config.optimizer.set_experimental_options({option: before})


@pytest.fixture
def float64():
    """Keras computes in double precision, in which equal means equal."""
    tf.keras.mixed_precision.set_global_policy(None)  # a policy that was set would win over floatx
    tf.keras.backend.set_floatx("float64")
    yield
    tf.keras.backend.set_floatx("float32")


@pytest.fixture(scope="session")
def tfssl_command():
    """Runs `python -m tfssl.COMMAND` as a user would, and returns the finished process."""
    return runs.command
