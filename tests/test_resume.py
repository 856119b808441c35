"""SIGKILL spread over a run, for every kind of source: the end is the uninterrupted run's, bit for
bit. Slow: `make test-slow`."""

import os
import signal
import subprocess
import time

import pytest
import tensorflow as tf
from runs import TRAIN, assert_identical, weights

FLAGS = (
    "--backbone=resnet18_v2", "--width_multiplier=0.25", "--stem=small", "--image_size=16", "--batch_size=8", "--train_steps=40",
    "--checkpoint_steps=8", "--log_steps=1", "--warmup_epochs=0.5", "--learning_rate=0.5", "--deterministic", "--keep_checkpoints=2",
)  # fmt: skip


def encoded(photos):
    return [(p.read_bytes(), int(p.parent.name == "warm")) for p in sorted(photos.rglob("*.jpg"))]


def as_folder(photos, tmp_path):
    return f"folder:{photos}"


def as_tfrecord(photos, tmp_path):
    examples = encoded(photos)
    for shard in range(3):
        with tf.io.TFRecordWriter(str(tmp_path / f"train-{shard:05}-of-00003")) as writer:
            for data, label in examples[shard::3]:
                features = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[label])
                    ),
                }
                writer.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=features)
                    ).SerializeToString()
                )
    return f"tfrecord:{tmp_path}/train-*"


def as_tfds(photos, tmp_path):
    import tensorflow_datasets as tfds

    # The test makes the class twice, and a name can be registered once.
    with tfds.core.registered.skip_registration():
        SomePhotos = _builder(tfds, photos, tmp_path)
    SomePhotos(data_dir=tmp_path).download_and_prepare()
    return "tfds:some_photos", f"--data_dir={tmp_path}"


def _builder(tfds, photos, tmp_path):
    class SomePhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            import io

            for i, (data, label) in enumerate(encoded(photos)):
                yield i, {"image": io.BytesIO(data), "label": label}

    return SomePhotos


def wait_for(process, condition, timeout=180):
    """Poll until `condition()`; False where the process ended first."""
    begun = time.monotonic()
    while not condition():
        if process.poll() is not None or time.monotonic() - begun > timeout:
            return False
        time.sleep(0.0005)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_execution", [1, 4])
@pytest.mark.parametrize("kind", [as_folder, as_tfrecord, as_tfds])
def test_kills_spread_over_a_run(kind, steps_per_execution, photos, tmp_path):
    (tmp_path / "data").mkdir()
    made = kind(photos, tmp_path / "data")
    dataset, *extra = (made,) if isinstance(made, str) else made
    command = [
        *TRAIN,
        f"--dataset={dataset}",
        *extra,
        *FLAGS,
        f"--steps_per_execution={steps_per_execution}",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, f"--workdir={whole}"], check=True, capture_output=True)
    folder, log = killed / "checkpoints", killed / "metrics.jsonl"

    def logged(step):
        return lambda: (
            log.exists() and any(f'"step": {s},' in log.read_text() for s in range(step, step + 4))
        )

    def saving():
        return folder.exists() and any(
            "_temp" in name or ".tempstate" in name for name in os.listdir(folder)
        )

    moments = {
        "before the first checkpoint": logged(4),
        "while saving": saving,
        "after a save": logged(18),
        "late": logged(33),
    }
    for moment, reached in moments.items():
        process = subprocess.Popen(
            [*command, f"--workdir={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert wait_for(process, reached), f"the run ended before the moment {moment!r}"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if moment == "before the first checkpoint":
            assert not list(folder.glob("*.index"))
    done = subprocess.run(
        [*command, f"--workdir={killed}"], check=True, capture_output=True, text=True
    )
    assert "resuming at step" in done.stdout
    assert not [name for name in os.listdir(folder) if "temp" in name], (
        "what the killed writer left is still there"
    )
    assert_identical(weights(killed, 40), weights(whole, 40))
