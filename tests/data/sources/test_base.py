import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl.errors import UserError
from tfssl.testing import check_source


@pytest.fixture
def folder(write_images):
    return tfssl.open_source("folder:" + write_images([f"{i:02}.png" for i in range(23)]))


@pytest.fixture
def stream(write_records):
    files = {f"train-{i:05}-of-00006": [1] * (1 + 3 * i) for i in range(6)}  # 51 records
    return tfssl.open_source("tfrecord:" + write_records(files), "train[3:]", shuffle_buffer=20)


@pytest.fixture(params=["folder", "stream"])
def source(request):
    return request.getfixturevalue(request.param)


def test_the_contract(source):
    check_source(source)


def test_order_depends_on_seed_and_number_alone(source, order):
    n = source.num_examples
    tf.random.set_seed(1)
    reference = order(source, 3 * n, seed=7)
    for global_seed, start in [(2, 0), (3, 1), (4, n - 1), (5, n), (0, 2 * n + 5)]:
        tf.random.set_seed(global_seed)
        assert order(source, 3 * n - start, seed=7, start=start) == reference[start:]


def test_order_is_the_same_in_another_process_without_a_global_seed(folder, stream, order):
    code = "import sys, tfssl\nfor spec, split in (sys.argv[1:3], sys.argv[3:]):\n" + (
        "    records = tfssl.open_source(spec, split, shuffle_buffer=20).records(seed=7).take(90)\n"
        "    print(*[int(record['index']) for record in records.as_numpy_iterator()])\n"
    )
    arguments = [folder.spec, folder.split, stream.spec, stream.split]
    printed = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    expected = [
        " ".join(str(index) for _, index in order(source, 90, seed=7))
        for source in (folder, stream)
    ]
    assert printed.splitlines()[-2:] == expected


@pytest.mark.parametrize("start", [0, 3, 50])
def test_rows_share_out_each_global_batch(source, order, start):
    whole = order(source, 100, seed=0, start=start)
    parts = [order(source, 30, seed=0, start=start, rows=(10, low, low + 5)) for low in (0, 5)]
    for part, low in zip(parts, (0, 5)):
        assert part == [(n, i) for n, i in whole if low <= n % 10 < low + 5][:30]
    passes = [order(source, rows=(10, low, high)) for low, high in ((0, 3), (3, 10))]
    assert sorted(passes[0] + passes[1]) == order(source)


def test_start_may_be_a_tensor_in_a_graph(source, order):
    def name(number):
        return (
            source.records(seed=3, start=number)
            .take(1)
            .map(source.name_in_graph)
            .get_single_element()
        )

    numbers = [0, 5, source.num_examples + 4]
    names = [
        x.decode()
        for x in tf.data.Dataset.from_tensor_slices(numbers).map(name).as_numpy_iterator()
    ]
    assert names == [
        source.name(order(source, 1, seed=3, start=number)[0][1]) for number in numbers
    ]


def test_orders_of_epochs_and_seeds_are_not_correlated():
    """Of 15 random orders of 5,000 no pair should correlate by more than 0.07 (5 standard
    errors)."""
    source = tfssl.data.sources.base.IndexedSource("x", "train", 5000)
    orders = []
    for seed in range(3):
        numbers = source.records(seed=seed).take(5 * 5000).batch(5000).as_numpy_iterator()
        orders += [batch["index"] for batch in numbers]
    correlation = np.corrcoef(orders) - np.eye(15)
    assert np.abs(correlation).max() < 0.07
    assert max(abs(np.corrcoef(o[:-1], o[1:])[0, 1]) for o in orders) < 0.07


def test_stream_mixes_files_and_records(write_records, order):
    files = {f"train-{i:05}-of-00020": [1] * 50 for i in range(20)}
    source = tfssl.open_source("tfrecord:" + write_records(files), shuffle_buffer=200)
    first = np.array([index for _, index in order(source, 100, seed=0)])
    assert len(set(first // 50)) >= 10  # files among the first hundred records
    source = tfssl.open_source(source.spec, shuffle_buffer=1)
    firsts = {order(source, 1, seed=seed)[0][1] // 50 for seed in range(10)}
    assert len(firsts) > 3  # the order of files is drawn, too


@pytest.mark.parametrize(
    "spec", ["imagenet", "folder:", "tfds:", "tfrecord:", "http://x/y.tar", ""]
)
def test_unknown_spec_lists_what_there_is(spec):
    with pytest.raises(UserError, match="tfds:NAME.*folder:PATH.*tfrecord:GLOB.*glyphs") as error:
        tfssl.open_source(spec)
    assert repr(spec) in str(error.value)


def test_a_bare_path_is_recognised(tmp_path):
    with pytest.raises(UserError, match=f"did you mean 'folder:{tmp_path}'"):
        tfssl.open_source(str(tmp_path))


def test_package_loads_its_parts_on_demand():
    assert tfssl.data.sources.splits.resolve("a", {"a": [1]}, "x") == [("a", 0, 1)]
    with pytest.raises(AttributeError):
        tfssl.data.nothing  # noqa: B018


def test_a_stream_starts_without_reading_the_chapters_before(write_records, order, monkeypatch):
    monkeypatch.setattr("tfssl.data.sources.base.StreamSource._GROUP", 3)
    root = write_records(
        {f"train-{i:05}-of-00007": [0] * (3 + i) for i in range(7)}
    )  # three groups, the last of one file
    source = tfssl.open_source(f"tfrecord:{root}")
    n = source.num_examples
    for seed in (None, 4):
        whole = order(source, n, seed=seed)
        assert sorted(index for _, index in whole) == list(range(n)) and [
            number for number, _ in whole
        ] == list(range(n))
        for start in {
            0,
            1,
            n // 2,
            n - 1,
            *range(10, 14),
        }:  # the first group ends among the latter
            assert order(source, n - start, seed=seed, start=start) == whole[start:]
    second = order(source, 2 * n, seed=4)[n:]
    assert [index for _, index in second] != [index for _, index in whole]
    # The files of the last group are all that its records need.
    last = {source.name(index).rpartition(" of ")[2] for _, index in whole[-3:]}
    assert len(last) == 1
    for file in tf.io.gfile.glob(f"{root}/*"):
        if file not in last:
            tf.io.gfile.remove(file)
    assert order(source, 3, seed=4, start=n - 3) == whole[-3:]
