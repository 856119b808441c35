"""How many records TFRecord files hold, and which labels: counted once, then remembered."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import tensorflow as tf
from absl import logging

from tfssl.data.gaps import Patience, is_of_content
from tfssl.errors import UserError, reason_of
from tfssl.storage.caches import cache_dir, stamp, try_write

_THREADS = 16  # files that are read at once
_NAME = ".tfssl_counts.json"


class Count(TypedDict):
    """What a file holds; low > high = -1 without labels."""

    records: int
    low: int
    high: int


class _Entry(TypedDict):
    stamp: list[int]
    count: Count


def count_records(files: Sequence[str], label_key: str, skip_damaged: bool = False) -> list[Count]:
    """Reads files through, unless that was done before.

    The counts are kept beside the files, or in the cache folder where that is read-only, under a
    file's name, size and times, with a checksum. Counts that are damaged, or of another form, count
    as absent.

    Args:
      files: list of file names.
      label_key: the feature that holds the label (int64); only this is parsed.
      skip_damaged: a file that is damaged now, or has fewer records than when it was counted, keeps
        the count of then.

    Returns:
      list of {"records": how many, "low", "high": smallest and largest label (low > high = -1 where
      there are none)}.

    Raises:
      UserError: for a file that is cut short or no TFRecord file, naming it.
    """
    folders: dict[str, list[tuple[str, str, list[int]]]] = {}
    known: dict[str, Count] = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        stamps = list(pool.map(stamp, files))
    for file, stamped in zip(files, stamps):
        entry = (file, f"{os.path.basename(file)} {label_key}", stamped)
        folders.setdefault(os.path.dirname(file) or ".", []).append(entry)
    for folder, entries in folders.items():
        beside, cached = _places(folder)
        kept = {**_load(cached), **_load(beside)}
        known.update(
            {
                file: kept[key]["count"]
                for file, key, new in entries
                if key in kept and _same(kept[key], new)
            }
        )
        missing = [file for file, _, _ in entries if file not in known]
        if not missing:
            continue
        logging.warning(
            "counting the records of %d files, this once: %s ...", len(missing), missing[0]
        )
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            earlier = {
                file: kept[key]["count"] for file, key, _ in entries if skip_damaged and key in kept
            }
            known.update(zip(missing, pool.map(_counter(label_key, earlier), missing)))
        whole = [entry for entry in entries if known[entry[0]] is not earlier.get(entry[0])]
        kept.update({key: {"stamp": new, "count": known[file]} for file, key, new in whole})
        content = json.dumps({"format": 1, "crc": _crc(kept), "files": kept}, indent=0).encode()
        if not try_write(beside, content):
            try_write(cached, content)
    return [known[file] for file in files]


def _places(folder: str) -> tuple[str, str]:
    """Where the counts of a folder's files are kept: beside them, or in the cache folder."""
    name = hashlib.blake2b(os.path.abspath(folder).encode(), digest_size=8).hexdigest()
    return os.path.join(folder, _NAME), os.path.join(cache_dir(), "counts", f"{name}.json")


def _load(path: str) -> dict[str, _Entry]:
    try:
        with tf.io.gfile.GFile(path) as file:
            content = json.load(file)
        # Older files have no checksum; they stay valid, for to count is to read everything.
        if content["format"] != 1 or content.get("crc") not in (None, _crc(content["files"])):
            return {}
        return {key: entry for key, entry in content["files"].items() if _is_count(entry)}
    except (
        tf.errors.OpError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return {}  # absent, or damaged: count again


def _crc(files: Mapping[str, _Entry]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _is_count(entry: Any) -> bool:
    """Whether an entry has the form {"stamp": [int], "count": {"records", "low", "high": int}}."""
    try:
        numbers = [*entry["stamp"], *(entry["count"][name] for name in ("records", "low", "high"))]
        return (
            len(entry["stamp"]) >= 2
            and all(type(n) is int for n in numbers)
            and entry["count"]["records"] >= 0
        )
    except (TypeError, KeyError):
        return False


def _same(entry: _Entry, stamped: list[int]) -> bool:
    """Whether a file's stamp is that of its entry. Older entries lack the last of three numbers."""
    return entry["stamp"] == stamped[: len(entry["stamp"])]


def _counter(label_key: str, earlier: Mapping[str, Count]) -> Callable[[str], Count]:
    """A function file -> {"records", "low", "high"}, which reads the file through and parses labels
    only. `earlier`: {file: what it gives for one that has lost records}."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def count(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def add(
            state: tuple[tf.Tensor, tf.Tensor, tf.Tensor], serialized: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            records, low, high = state
            labels = tf.io.parse_example(serialized, {label_key: tf.io.VarLenFeature(tf.int64)})[
                label_key
            ].values
            labels = tf.boolean_mask(labels, labels >= 0)  # negative is how some say "none"
            return (
                records + tf.size(serialized, tf.int64),
                tf.minimum(low, tf.reduce_min(labels)),  # of nothing: the largest int64
                tf.reduce_max(tf.concat([labels, [high]], 0)),
            )

        start = (tf.constant(0, tf.int64), tf.constant(tf.int64.max), tf.constant(-1, tf.int64))
        return tf.data.TFRecordDataset(file, buffer_size=4 << 20).batch(64).reduce(start, add)

    traced = count.get_concrete_function()  # now, and not by all threads at once

    patience = Patience()

    def count_file(file: str, tries: int = 0) -> Count:
        try:
            records, low, high = (int(value) for value in traced(tf.constant(file)))
        except (
            tf.errors.InvalidArgumentError,
            UnicodeDecodeError,
        ) as error:  # which quotes the record, whatever it is
            raise UserError(
                f"{file!r}: not all records are tf.train.Example with an int64 {label_key!r}"
            ) from error
        except tf.errors.OpError as error:
            if not is_of_content(error):
                patience.wait(file, error, tries)
                return count_file(file, tries + 1)
            if file not in earlier or not isinstance(error, tf.errors.DataLossError):
                hint = (
                    "; where it was counted whole before, --skip_damaged_shards goes on without "
                    "what is lost"
                )
                raise UserError(broken(file, error) + hint) from error
            records = -1
        patience.reached()
        if file in earlier and records < earlier[file]["records"]:
            logging.warning("%r is damaged: it had %d records", file, earlier[file]["records"])
            return earlier[file]
        return {"records": records, "low": low, "high": high}

    return count_file


def broken(file: str, error: tf.errors.OpError) -> str:
    """The line for a file that TensorFlow cannot read."""
    return (
        f"{file!r} is not a whole, uncompressed TFRecord file ({reason_of(error)}): write it "
        "again, or leave it out"
    )
