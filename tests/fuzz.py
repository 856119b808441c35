"""Strangers' files, mutated: whatever is in a file, reading it ends in its content or in an error
of ours. `python tests/fuzz.py`

Each case is a sound file with a few seeded mutations (bits, runs, cuts, splices, numbers set to
extremes). The readers run in forked processes, so that a crash is found and named by its seed:
`--kinds archives --first 12345 --cases 1` repeats one case.
"""

import argparse
import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
import tempfile
import time
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(str(pathlib.Path(__file__).parent / "helpers"))

import numpy as np  # noqa: E402
import runs  # noqa: E402
import tensorflow as tf  # noqa: E402

CHUNK = 500  # cases in one process
CASES = {"images": 60_000, "archives": 10_000, "records": 1_000, "states": 1_000, "weights": 10_000}
EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00" * 4,
)


def mutate(content, rng):
    """`content`, bytes, with one to four changes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        # Headers, where the numbers are, get their share.
        at = int(
            rng.integers(0, max(1, len(content) if rng.random() < 0.7 else min(64, len(content))))
        )
        kind, few = rng.integers(0, 6), int(rng.integers(1, 64))
        if kind == 0 and content:
            content[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            content[at : at + few] = rng.integers(0, 256, few, np.uint8).tobytes()
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at : at + few]
        elif kind == 4:
            other = int(rng.integers(0, max(1, len(content))))
            content[at:at] = content[other : other + few]
        else:
            extreme = EXTREMES[rng.integers(0, len(EXTREMES))]
            content[at : at + len(extreme)] = extreme
    return bytes(content)


class Images:
    """Decoding, whole and in part, of JPEG, PNG of 8 and 16 bits, GIF, BMP and BMP with a palette."""

    def __init__(self, folder):
        from PIL import Image

        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, [4, 4, 3], np.uint8).repeat(6, 0).repeat(8, 1)
        self.sound = [
            tf.io.encode_jpeg(noise).numpy(),
            tf.io.encode_png(noise).numpy(),
            tf.io.encode_png(noise.astype(np.uint16) * 257).numpy(),
            *(
                _saved(Image.fromarray(noise).convert(mode), form)
                for mode, form in (("P", "GIF"), ("RGB", "BMP"), ("P", "BMP"))
            ),
        ]
        from tfssl.data.ops import image

        self.read = tf.function(
            lambda content: (
                tf.reduce_sum(tf.cast(image.decode(content), tf.int32)),
                image.random_resized_crop(content, tf.constant([1, 2]), 16),
                image.resize_central_crop(content, 16, 18),
            ),
            input_signature=[tf.TensorSpec([], tf.string)],
            autograph=False,
        )

    def case(self, number, rng, folder):
        try:
            self.read(tf.constant(mutate(self.sound[number % len(self.sound)], rng)))
        except tf.errors.InvalidArgumentError:
            pass  # an image that cannot be decoded


class Archives:
    """Unpacking of tar, tar.gz, tar.bz2, tar.xz and zip."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        files = {
            f"photos/{'ab'[i % 2]}/{i}.png": rng.integers(0, 256, 300, np.uint8).tobytes()
            for i in range(6)
        }
        self.sound = {}
        for ending, mode in (
            (".tar", "w"),
            (".tar.gz", "w:gz"),
            (".tar.bz2", "w:bz2"),
            (".tar.xz", "w:xz"),
        ):
            whole = io.BytesIO()
            with tarfile.open(fileobj=whole, mode=mode) as tar:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            self.sound[ending] = whole.getvalue()
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        self.sound[".zip"] = whole.getvalue()

    def case(self, number, rng, folder):
        from tfssl.errors import UserError
        from tfssl.storage import archive

        ending = list(self.sound)[number % len(self.sound)]
        path = folder / f"a{ending}"
        path.write_bytes(mutate(self.sound[ending], rng))
        before = set(folder.iterdir())
        try:
            archive.unpack(str(path), str(folder / "cache"))
        except UserError:
            pass
        assert set(folder.iterdir()) <= before | {folder / "cache"}, "something was written outside"


class Records:
    """Counting and reading of a TFRecord file."""

    def __init__(self, folder):
        path = folder / "sound"
        picture = tf.io.encode_png(np.zeros([4, 4, 3], np.uint8)).numpy()
        with tf.io.TFRecordWriter(str(path)) as records:
            for i in range(6):
                feature = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[picture])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[i % 2])
                    ),
                }
                records.write(
                    tf.train.Example(
                        features=tf.train.Features(feature=feature)
                    ).SerializeToString()
                )
        self.sound = path.read_bytes()

    def case(self, number, rng, folder):
        from tfssl.data import open_source
        from tfssl.errors import UserError

        path = folder / "a-train.tfrecord"
        path.write_bytes(mutate(self.sound, rng))
        try:
            open_source(f"tfrecord:{path}", "train")
        except UserError:
            pass


class Weights:
    """What `tfssl-import` takes: safetensors, both formats of PyTorch, a haiku pickle, and the two
    files of a TensorFlow checkpoint."""

    def __init__(self, folder):
        fixtures = pathlib.Path(__file__).parent / "interop" / "fixtures"
        names = ("file.safetensors", "older.pth", "zip.pth")
        self.sound = [{name: (fixtures / name).read_bytes()} for name in names]
        state = {"net/conv": {"w": np.ones([3, 3, 3, 4], np.float32), "b": np.zeros(4)}}
        self.sound.append({"haiku.pkl": pickle.dumps({"params": state, "step": np.int64(3)}, 4)})
        (folder / "sound").mkdir()
        tf.train.Checkpoint(x=tf.Variable(tf.ones([64]))).write(str(folder / "sound" / "x"))
        self.sound.append({p.name: p.read_bytes() for p in (folder / "sound").iterdir()})

    def case(self, number, rng, folder):
        from tfssl.errors import UserError
        from tfssl.interop.formats import weights

        sound = self.sound[number % len(self.sound)]
        changed = rng.choice(list(sound))
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for name, content in sound.items():
                pathlib.Path(place, name).write_bytes(
                    mutate(content, rng) if name == changed else content
                )
            try:
                weights.read(os.path.join(place, *sound) if len(sound) == 1 else place)
            except UserError:
                pass


class States:
    """What tfssl itself has written, and reads again."""

    def __init__(self, folder):
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        cache = folder / "features"
        _commit(cache, rows)
        self.readers = {
            "flags.flags": (
                b"--task=rotation\n--epochs=3.0\n--nodeterministic\n--seed=0\n",
                _read_flags,
            ),
            "metrics.jsonl": (
                b'{"step": 1, "loss": 1.5}\n{"step": 2, "loss": null}\n{"step": 3}\n',
                _read_metrics,
            ),
            "tfssl.json": (
                b'{"crop": 224, "resize": 256, "endpoints": ["a"], "features": {"a": 8}, "format": 1}',
                _read_facts,
            ),
            "provenance.json": (_provenance(), _read_provenance),
            ".tfssl_counts.json": (
                b'{"format": 1, "files": {"a-train label": {"stamp": [9, 9], "count": {"records": 6, "low": 0, "high": 1}}}}',
                _read_counts,
            ),
            "results.json": (
                b'{"classifier": "w/classifier/8", "test_split": "test", "results": []}',
                _read_results,
            ),
            "lock": (b'{"host": "h", "boot": "b", "pid": 7, "start": 5, "nonce": "n"}', _read_lock),
            "features.rows": (next(cache.glob("*/rows.npz")).read_bytes(), _read_features),
            "features.npy": (next(cache.glob("*/*.npy")).read_bytes(), _read_features),
        }

    def case(self, number, rng, folder):
        from tfssl.errors import UserError

        name = list(self.readers)[number % len(self.readers)]
        sound, read = self.readers[name]
        (folder / name).write_bytes(mutate(sound, rng))
        try:
            read(folder / name)
        except UserError:
            pass
        finally:
            (folder / name).unlink(missing_ok=True)


def _read_flags(path):
    from tfssl.config import flagfile

    flagfile.read(str(path))


def _read_metrics(path):
    from tfssl.training import callbacks

    callbacks._drop_later_lines(str(path), 2)


def _read_facts(path):
    from tfssl.hub import facts

    (path.parent / "assets").mkdir(exist_ok=True)
    os.replace(path, path.parent / "assets" / path.name)
    facts.read(str(path.parent))


class Broken:
    """For the tests of this file: the third case raises what is not ours, or ends the process."""

    def __init__(self, folder):
        pass

    def case(self, number, rng, folder):
        if number == 2:
            raise ValueError("odd")


class Deadly(Broken):
    def case(self, number, rng, folder):
        if number == 2:
            os._exit(3)


def _provenance():
    data = {
        "num_examples": 4,
        "class_names": ["a", "b"],
        "num_classes": 2,
        "folder": "f",
        "times": "t",
    }
    data |= {part: "0123" for part in ("names", "contents", "labels", "reading")}
    entry = {
        "step": 0,
        "date": "d",
        "dataset": "folder:f",
        "split": "train",
        "data": data,
        "machine": {"threads": 2},
    }
    return json.dumps({"format": 1, "starts": [entry]}).encode()


def _read_provenance(path):
    from tfssl.training import provenance

    provenance.read(str(path))


def _read_counts(path):
    from tfssl.data.listing import counts

    counts._load(str(path))


def _read_results(path):
    from tfssl.export import classifier

    classifier.measured(str(path))


def _read_lock(path):
    from tfssl.storage import locks

    with locks.hold(str(path), "it", "wait"):
        pass


def _commit(folder, rows):
    """Cached features of one endpoint."""
    from tfssl.downstream.features.cache import FeatureCache

    cache = FeatureCache(str(folder), {"of": "fuzz"})
    array = cache.create("a", rows.shape, rows.dtype)
    array[:] = rows
    index = np.arange(len(rows))
    cache.commit({"a": array}, {"labels": index % 2, "index": index, "dropped": np.array(["x"])})
    return cache


def _read_features(path):
    """Damaged features are absent, never others."""
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    with tempfile.TemporaryDirectory() as folder:
        cache = _commit(folder, rows)
        pattern = "*.npz" if path.name.endswith(".rows") else "*.npy"
        os.replace(path, next(pathlib.Path(cache.folder).glob(pattern)))
        _, found = cache.read(["a"])
        assert not found or np.array_equal(found["a"], rows), "other features than were written"


KINDS = {
    "images": Images,
    "archives": Archives,
    "records": Records,
    "states": States,
    "weights": Weights,
}
_MADE = {**KINDS, "raise": Broken, "die": Deadly}


def _saved(picture, form):
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def _work(kind, numbers, report):
    """In a forked process: run cases, and write (cases done, failures, peak memory in GB) as they
    come."""
    import logging

    logging.disable(logging.WARNING)
    for number in (1, 2):  # libjpeg complains, and what is mended is told
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        reader = _MADE[kind](folder)
        for done, number in enumerate(numbers):
            report.write_text(json.dumps([done, failures, runs.peak_gigabytes()]))
            try:
                reader.case(
                    number, np.random.default_rng([number, list(_MADE).index(kind)]), folder
                )
            except Exception as e:
                failures.append([number, f"{type(e).__name__}: {str(e)[:200]}"])
        report.write_text(json.dumps([len(numbers), failures, runs.peak_gigabytes()]))


def run(kind, first, cases, limit=600):
    """Failures of the cases first, first + 1, ...: ([(number, what happened)], the most memory of a
    process in GB)."""
    failures, peak, number, end = [], 0.0, first, first + cases
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report")
        while number < end:
            numbers = range(number, min(number + CHUNK, end))
            report.write_text(json.dumps([0, [], 0]))
            process = runs.PROCESSES.Process(target=_work, args=(kind, numbers, report))
            process.start()
            process.join(limit)
            hung = process.is_alive()
            if hung:
                process.kill()
                process.join()
            done, found, held = json.loads(report.read_text())
            failures += [tuple(failure) for failure in found]
            peak, number = max(peak, held), number + done
            if done < len(numbers):
                failures.append(
                    (
                        number,
                        f"hung for {limit} s"
                        if hung
                        else f"the process died, status {process.exitcode}",
                    )
                )
                number += 1
    return failures, peak


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma list")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case; it is its seed"
    )
    parser.add_argument(
        "--cases",
        type=int,
        help=f"how many; {', '.join(f'{n} {kind}' for kind, n in CASES.items())} by default",
    )
    args = parser.parse_args()
    failed = False
    print("| files | cases | failures | peak memory, GB | seconds |\n|---|---|---|---|---|")
    for kind in args.kinds.split(","):
        begun, cases = time.monotonic(), args.cases or CASES[kind]
        failures, peak = run(kind, args.first, cases)
        print(
            f"| {kind} | {cases} | {len(failures)} | {peak:.2f} | {time.monotonic() - begun:.0f} |",
            flush=True,
        )
        for number, what in failures[:20]:
            print(f"  {kind} {number}: {what}", file=sys.stderr)
        failed = failed or failures
    sys.exit(bool(failed))


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    main()
