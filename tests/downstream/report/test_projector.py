"""What TensorBoard's projector reads: its own configuration class, tables of one length."""

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins import projector as tensorboard

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import projector


def test_files_are_what_the_projector_reads(tmp_path):
    x = np.random.default_rng(0).normal(size=[7, 3]).astype(np.float32)
    labels = np.array([0, 1, 0, -1, 1, 0, 1])
    test = Features({"x": x}, labels, np.arange(7), 2, ["cat", "dog\tor\nwolf"])
    written = projector.write(str(tmp_path), {"a/100": ("x", test), "b": ("x", test)})
    assert {path.rsplit("/", 1)[1] for path in written} == {
        "a_100.tsv", "a_100_labels.tsv", "b.tsv", "b_labels.tsv", "projector_config.pbtxt",
    }  # fmt: skip
    text = (tmp_path / "projector_config.pbtxt").read_text()
    config = text_format.Parse(text, tensorboard.ProjectorConfig())
    assert [entry.tensor_name for entry in config.embeddings] == ["a/100 x", "b x"]
    vectors = np.loadtxt(tmp_path / config.embeddings[0].tensor_path, delimiter="\t")
    np.testing.assert_allclose(vectors, x, rtol=1e-5)
    lines = (tmp_path / config.embeddings[0].metadata_path).read_text().splitlines()
    assert lines[0] == "class\timage" and lines[2] == "dog or wolf\t1" and lines[4] == "\t3"
    assert len(lines) == 1 + len(x)
