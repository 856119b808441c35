"""Shared fixtures: quiet TensorFlow, and folders of images that the tests write themselves."""

import os
import shutil
import tempfile
from multiprocessing.util import Finalize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfssl  # noqa: E402, F401, I001 (before TensorFlow: it chooses Keras 2)
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import runs  # noqa: E402
import tensorflow as tf  # noqa: E402

# CPU devices for the tests of replicas: two, or as many as a test that starts pytest again asks for. This has to be said before
# TensorFlow looks at its devices.
REPLICAS = int(os.environ.get("TFSSL_TEST_REPLICAS", 2))
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS
)


def pytest_configure(config):
    """All of a test run's files, TensorFlow's own among them (killed processes and xdist's leave theirs), lie in one folder, which goes
    at the end."""
    if not hasattr(config, "workerinput"):
        folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="tfssl-tests-")
        last = -200  # after multiprocessing's own files
        Finalize(None, shutil.rmtree, [folder], {"ignore_errors": True}, exitpriority=last)


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: with two processes, neither is left with one of them at the end."""
    longest = ("test_base.py", "test_train.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Nothing outside the test's own folder is read or written."""
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["TFSSL_CACHE"] = folder
    yield
    os.environ.pop("TFSSL_CACHE", None)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test draws the same initial weights in every run."""
    tf.keras.utils.set_random_seed(0)


def oriented_picture(rng, size=40):
    """A random uint8 picture whose rotation can be told: bright at the top, dark at the bottom, with noise."""
    ramp = np.linspace(220, 30, size)[:, None, None]
    return np.clip(ramp + rng.normal(0, 12, [size, size, 3]) + rng.uniform(-25, 25, [1, 1, 3]), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 48 JPEGs in two classes (warm and cold colours), unsplit."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        name = "warm" if i % 2 else "cold"
        picture = oriented_picture(rng).astype(int)
        picture[..., 0 if i % 2 else 2] += 25
        path = root / name / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), quality=95).numpy())
    return root


@pytest.fixture(scope="session")
def replicas():
    """One strategy for all tests: a second one in a process would take the first one's collective keys (TensorFlow 2.21)."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])


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
