"""Writes fixtures/: what PyTorch, torchvision, timm and safetensors themselves make of weights that
follow from their names (helpers/named_weights.py). The tests need none of these packages.

    pip install torch torchvision timm safetensors
    python tests/interop/make_fixtures.py

The committed files come of torch 2.13.0+cpu, torchvision 0.28.0, timm 1.0.31, safetensors 0.8.0.
"""

import collections
import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "helpers"))
import named_weights  # noqa: E402

FIXTURES = HERE / "fixtures"


def fill(network):
    """Give a network the weights of its names; [(name, shape)] of its state."""
    state = network.state_dict()
    for name, x in state.items():
        if x.is_floating_point():
            x.copy_(torch.from_numpy(named_weights.value(name, tuple(x.shape))))
    network.eval()
    return [(name, list(x.shape)) for name, x in state.items()]


def save(name, names, endpoints):
    samples = {key: named_weights.sample(x) for key, x in endpoints.items()}
    scale = {f"scale/{key}": np.abs(x).mean() for key, x in endpoints.items()}
    np.savez_compressed(FIXTURES / f"{name}.npz", names=json.dumps(names), **samples, **scale)
    print(name, {key: (x.shape, float(np.abs(x).mean())) for key, x in endpoints.items()})


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def resnet(name):
    network = getattr(torchvision.models, name)(weights=None)
    names = fill(network)
    x = torch.from_numpy(named_weights.images(64).transpose(0, 3, 1, 2))
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        endpoints = {"after_root": channels_last(x)}
        for i in range(1, 5):
            x = getattr(network, f"layer{i}")(x)
            endpoints[f"block{i}"] = channels_last(x)
        endpoints["pre_logits"] = x.mean((2, 3)).numpy()
    save(name, names, endpoints)


def vit(name, patch=16, depth=12, **settings):
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=4 * patch, patch_size=patch, embed_dim=192, depth=depth, **settings
    )
    names = fill(network)
    x = torch.from_numpy(named_weights.images(4 * patch).transpose(0, 3, 1, 2))
    endpoints, front = {}, network.num_prefix_tokens
    with torch.no_grad():
        x = network.norm_pre(network._pos_embed(network.patch_embed(x)))
        for i, block in enumerate(network.blocks, 1):
            x = block(x)
            endpoints[f"block{i}"] = x[:, front:].reshape(2, 4, 4, -1).numpy()
        x = network.norm(x)
        endpoints[f"block{depth}"] = x[:, front:].reshape(2, 4, 4, -1).numpy()
        endpoints["pre_logits"] = x[:, 0].numpy()
    save(name, names, endpoints)


def files():
    """Files of the two libraries, of a few numbers each: tests say which."""
    base = torch.arange(24, dtype=torch.float32)
    tensors = collections.OrderedDict(
        plain=base[:6].reshape(2, 3).clone(),
        transposed=base[:6].reshape(2, 3).t(),
        part=base[10:14],
        half=torch.tensor([0.5, -2.0], dtype=torch.float16),
        brain=torch.tensor([1.5, -3.0], dtype=torch.bfloat16),
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    nested = {"epoch": 3, "arch": "resnet50", "state_dict": tensors, "optimizer": {"lr": 0.1}}
    torch.save(nested, FIXTURES / "zip.pth")
    torch.save(nested, FIXTURES / "older.pth", _use_new_zipfile_serialization=False)
    whole = {name: x.contiguous().clone() for name, x in tensors.items()}
    safetensors.torch.save_file(whole, FIXTURES / "file.safetensors", {"who": "safetensors"})


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    files()
    resnet("resnet18")
    resnet("resnet50")
    vit("vit_tiny", num_heads=3)
    vit("vit_tiny_6_heads", num_heads=6)
    # What DINOv2's networks with registers have more, in timm's form of them.
    more = {"reg_tokens": 4, "init_values": 1e-5, "no_embed_class": True}
    vit("vit_registers", patch=14, depth=2, num_heads=3, **more)
