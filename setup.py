"""Packaging of tfssl; the environment markers choose between the two TensorFlow stacks."""

import os
import re

from setuptools import find_packages, setup

HERE = os.path.dirname(os.path.abspath(__file__))
OLD, NEW = 'python_version < "3.12"', 'python_version >= "3.12"'


def read(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        return f.read()


def flag_packages():
    """Each folder below flags/ that holds flagfiles, as a package of data: tfssl.flags.<paper>."""
    folders = [
        root
        for root, _, files in os.walk(os.path.join(HERE, "flags"))
        if any(f.endswith(".flags") for f in files)
    ]
    relative = ["flags", *(os.path.relpath(folder, HERE) for folder in folders)]
    return {"tfssl." + path.replace(os.sep, "."): path for path in dict.fromkeys(relative)}


FLAGS = flag_packages()

setup(
    name="tfssl",
    version=re.search(r'__version__ = "(.+?)"', read("tfssl/version.py")).group(1),
    description="Self-supervised visual representation learning on TensorFlow and Keras, published as TF-Hub modules",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.14",  # for 3.14 there are release candidates of TensorFlow alone
    packages=[*find_packages(include=["tfssl", "tfssl.*"]), "tfssl.export", *FLAGS],
    package_dir={"tfssl.export": "export", **FLAGS},
    package_data={"tfssl": ["py.typed"], **{package: ["*.flags"] for package in FLAGS}},
    include_package_data=False,
    install_requires=[
        # Up to Python 3.11: the last line on which TensorFlow, Keras and tensorflow-addons all work
        # together.
        f"tensorflow==2.15.1; {OLD}",
        f"keras==2.15.*; {OLD}",
        f"tf-keras==2.15.*; {OLD}",
        f"tensorflow-addons==0.23.*; {OLD} and platform_machine != 'aarch64'",
        # 1.17 wants a newer protobuf than TensorFlow 2.15 allows
        f"tensorflow-metadata<1.17; {OLD}",
        # From Python 3.12: the newest TensorFlow, with Keras 2 beside its Keras 3. tf-keras pins
        # its own TensorFlow line.
        f"tensorflow>=2.16; {NEW}",
        f"tf-keras>=2.16; {NEW}",
        f"keras>=3; {NEW}",
        "tensorflow-datasets>=4.9",
        # tensorflow-datasets imports it at first use and does not always ask for it
        "importlib-resources>=5.10",
        "tensorflow-hub>=0.16.1",
        "tensorboard>=2.15",  # newer TensorFlows write summaries only where it is installed
        "absl-py>=1.4",
        "scikit-learn>=1.3",
        "scipy>=1.10",
        "matplotlib>=3.7",
        "pillow>=10.1",  # fonts of a size, for the labels of pictures
        "pycocotools>=2.0.7",
        "threadpoolctl>=3",
        "tqdm>=4.60",
        "setuptools<81",  # tensorflow-hub 0.16.1 imports pkg_resources
    ],
    extras_require={
        "gpu": [f"tensorflow[and-cuda]==2.15.1; {OLD}", f"tensorflow[and-cuda]>=2.16; {NEW}"],
        "onnx": [
            "tf2onnx>=1.16",
            f"onnx>=1.15,<1.17; {OLD}",  # newer ones want another ml-dtypes than TensorFlow 2.15
            f"onnx>=1.17; {NEW}",
            "onnxruntime>=1.17",
        ],
        "tiff": ["tifffile>=2023.7.10"],  # of many channels, or color of more than 8 bits
        "dicom": ["pydicom>=2.4"],
        "track": ["mlflow-skinny>=2.9", "wandb>=0.16"],
        "umap": ["umap-learn>=0.5.5"],
        "docs": ["sphinx>=7.2,<10", "furo>=2024.8", "myst-parser>=3"],
        "test": [
            "pytest>=7",
            "ruff>=0.6",
            "import-linter>=2",
            "mypy>=1.10",
            "scikit-image>=0.22",
            "tifffile>=2023.7.10",
        ],
    },
    entry_points={
        "console_scripts": [
            "tfssl-train = tfssl.train:run",
            "tfssl-export = tfssl.export.__main__:run",
            "tfssl-eval = tfssl.evaluate:run",
            "tfssl-finetune = tfssl.finetune:run",
            "tfssl-predict = tfssl.predict:run",
            "tfssl-import = tfssl.import_weights:run",
        ]
    },
)
