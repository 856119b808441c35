"""Do PyTorch's own networks compute the same with what `tfssl-export --layout=torch` writes?

    python tests/interop/check_in_torch.py write FOLDER     with tfssl
    python tests/interop/check_in_torch.py check FOLDER     with torch, torchvision and timm

`write` exports networks with random weights and the epsilon of the 2019 study, and what they answer
to two images; `check` loads each strictly, and prints the largest difference by the scale.
"""

import pathlib
import sys

import numpy as np

# {folder: (their name, our settings, and theirs that `layouts.requirements` names)}
_RESNET50, _VIT = {"name": "resnet50_v1"}, {"name": "vit_tiny", "grid": 4}
NETWORKS = {
    "resnet18": ("resnet18", {"name": "resnet18_v1"}, {}),
    "resnet50": ("resnet50", _RESNET50, {}),
    "dilated": (
        "resnet50",
        {**_RESNET50, "output_stride": 16},
        {"replace_stride_with_dilation": [False, False, True]},
    ),
    "neck": ("resnet50", {**_RESNET50, "neck": "fpn"}, {}),
    "vit_tiny": ("vit_tiny_patch16_224", _VIT, {}),
    "vit_small": ("vit_small_patch16_224", {"name": "vit_small", "positions": "fixed"}, {}),
    "heads": ("vit_tiny_patch16_224", {**_VIT, "heads": 6}, {"num_heads": 6}),
    "registers": (
        "vit_tiny_patch16_224",
        {**_VIT, "registers": 4},
        {"reg_tokens": 4, "no_embed_class": True},
    ),
    "mean": (
        "vit_tiny_patch16_224",
        {**_VIT, "pool": "mean"},
        {"global_pool": "avg", "fc_norm": False},
    ),
    "no_token": (
        "vit_tiny_patch16_224",
        {**_VIT, "pool": "mean", "class_token": False},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
    ),
}


def write(folder):
    import tensorflow as tf

    from tfssl import backbones
    from tfssl.export import layouts

    images = np.random.default_rng(0).normal(size=[2, 64, 64, 3]).astype(np.float32)
    for name, (_, settings, _) in NETWORKS.items():
        network = backbones.build(**settings)
        network.build((None, None, None, 3))
        rng = np.random.default_rng(1)
        for v in network.variables:
            if len(v.shape) == 1:
                v.assign(v + rng.uniform(0, 0.5, v.shape))
        layouts.save("torch", network, str(folder / name), image_size=64)
        trunk = getattr(network, "trunk", network)  # a neck is left out
        outputs = trunk(tf.constant(images), training=False)["pre_logits"]
        np.savez(folder / f"{name}.npz", images=images, outputs=outputs)


def check(folder):
    import timm
    import torch
    import torchvision
    from safetensors.torch import load_file

    for name, (theirs, _, settings) in NETWORKS.items():
        if theirs.startswith("vit"):
            network = timm.create_model(
                theirs, pretrained=False, img_size=64, num_classes=0, **settings
            )
        else:
            network = getattr(torchvision.models, theirs)(weights=None, **settings)
            network.fc = torch.nn.Identity()
        network.load_state_dict(load_file(folder / name / "model.safetensors"), strict=True)
        with np.load(folder / f"{name}.npz") as file, torch.no_grad():
            images = torch.from_numpy(file["images"].transpose(0, 3, 1, 2).copy())
            found, expected = network.eval()(images).numpy(), file["outputs"]
        print(name, np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
