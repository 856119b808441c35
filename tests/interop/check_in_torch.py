"""Do PyTorch's own networks compute the same with what `tfssl-export --layout=torch` writes?

    python tests/interop/check_in_torch.py write FOLDER     with tfssl
    python tests/interop/check_in_torch.py check FOLDER     with torch, torchvision and timm

`write` exports networks with random weights and the epsilon of the 2019 study, and what they answer
to two images; `check` loads each strictly, and prints the largest difference by the scale.
"""

import pathlib
import sys

import numpy as np

NETWORKS = {
    "resnet18": {"name": "resnet18_v1"},
    "resnet50": {"name": "resnet50_v1"},
    "vit_tiny_patch16_224": {"name": "vit_tiny", "grid": 4},
    "vit_small_patch16_224": {"name": "vit_small", "positions": "fixed"},
}


def write(folder):
    import tensorflow as tf

    from tfssl import backbones
    from tfssl.export import layouts

    images = np.random.default_rng(0).normal(size=[2, 64, 64, 3]).astype(np.float32)
    for name, settings in NETWORKS.items():
        network = backbones.build(**settings)
        network.build((None, None, None, 3))
        rng = np.random.default_rng(1)
        for v in network.variables:
            if len(v.shape) == 1:
                v.assign(v + rng.uniform(0, 0.5, v.shape))
        layouts.save("torch", network, str(folder / name), image_size=64)
        outputs = network(tf.constant(images), training=False)["pre_logits"]
        np.savez(folder / f"{name}.npz", images=images, outputs=outputs)


def check(folder):
    import timm
    import torch
    import torchvision
    from safetensors.torch import load_file

    for name in NETWORKS:
        if name.startswith("vit"):
            network = timm.create_model(name, pretrained=False, img_size=64, num_classes=0)
        else:
            network = getattr(torchvision.models, name)(weights=None)
            network.fc = torch.nn.Identity()
        network.load_state_dict(load_file(folder / name / "model.safetensors"), strict=True)
        with np.load(folder / f"{name}.npz") as file, torch.no_grad():
            images = torch.from_numpy(file["images"].transpose(0, 3, 1, 2).copy())
            found, expected = network.eval()(images).numpy(), file["outputs"]
        print(name, np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
