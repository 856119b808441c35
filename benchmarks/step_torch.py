"""The contenders of step.py in PyTorch: the same networks, heads, losses and optimizer, as its
users write them. Started by step.py."""

import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import step as step_by_step  # noqa: E402

CLASSES = 1000


def norm(channels, **settings):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01, **settings)


def conv(fan_in, channels, size, stride=1):
    return nn.Conv2d(fan_in, channels, size, stride, size // 2, bias=False)


class Unit(nn.Module):
    """A residual unit, v1 or v2, basic or bottleneck; a bottleneck's stride sits on its 3x3 convolution."""

    def __init__(self, version, bottleneck, fan_in, width, stride):
        super().__init__()
        channels = width * (4 if bottleneck else 1)
        if bottleneck:
            shapes = [(fan_in, width, 1, 1), (width, width, 3, stride), (width, channels, 1, 1)]
        else:
            shapes = [(fan_in, width, 3, stride), (width, width, 3, 1)]
        self.version = version
        self.convs = nn.ModuleList(conv(*shape) for shape in shapes)
        self.norms = nn.ModuleList(norm(shape[1 if version == 1 else 0]) for shape in shapes)
        self.projection = None
        if stride > 1 or fan_in != channels:
            self.projection = conv(fan_in, channels, 1, stride)
            if version == 1:
                self.projection = nn.Sequential(self.projection, norm(channels))

    def forward(self, x):
        y = shortcut = x
        if self.version == 2:
            y = F.relu(self.norms[0](x), inplace=True)
        if self.projection is not None:
            shortcut = self.projection(x if self.version == 1 else y)
        for i, (c, n) in enumerate(zip(self.convs, self.norms)):
            if self.version == 1:
                y = n(c(F.relu(y, inplace=True) if i else y))
            else:
                y = c(F.relu(n(y), inplace=True) if i else y)
        return F.relu(y + shortcut, inplace=True) if self.version == 1 else y + shortcut


class ResNet(nn.Module):
    """Up to the mean over the map, in float32."""

    def __init__(self, name, small, width):
        super().__init__()
        depth, version = (int(number) for number in name[len("resnet") :].split("_v"))
        units = {
            18: (2, 2, 2, 2),
            34: (3, 4, 6, 3),
            50: (3, 4, 6, 3),
            101: (3, 4, 23, 3),
            152: (3, 8, 36, 3),
        }[depth]
        root = int(64 * width + 0.5)
        layers = [conv(3, root, 3) if small else conv(3, root, 7, 2)]
        if version == 1:
            layers += [norm(root), nn.ReLU(inplace=True)]
        if not small:
            layers.append(nn.MaxPool2d(3, 2, 1))
        fan_in = root
        for block in range(4):
            for i in range(units[block]):
                layers.append(
                    Unit(
                        version,
                        depth >= 50,
                        fan_in,
                        root * 2**block,
                        2 if i == 0 and block > 0 else 1,
                    )
                )
                fan_in = root * 2**block * (4 if depth >= 50 else 1)
        if version == 2:
            layers += [norm(fan_in), nn.ReLU(inplace=True)]
        self.layers, self.channels = nn.Sequential(*layers), fan_in

    def forward(self, x):
        return self.layers(x).float().mean((2, 3))


class Block(nn.Module):
    """A pre-norm block of a vision transformer."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x):
        n, length, channels = x.shape
        qkv = self.qkv(self.norms[0](x)).reshape(n, length, 3, self.heads, -1)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(y.transpose(1, 2).reshape(n, length, channels))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    """Twelve blocks, up to the class token, in float32."""

    def __init__(self, name, image_size, width):
        super().__init__()
        channels, heads = step_by_step.VITS[name]
        channels, patch = int(channels * width + 0.5), step_by_step.patch_of(image_size)
        self.embed = nn.Conv2d(3, channels, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(12)))
        self.norm, self.channels = nn.LayerNorm(channels, eps=1e-6), channels

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x))[:, 0].float()


def optimizer_of(model, decay):
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9)


def supervised(network, batch, image_size):
    model = nn.Sequential(network, nn.Linear(network.channels, CLASSES))
    images, labels = torch.rand(batch, 3, image_size, image_size), torch.randint(CLASSES, (batch,))
    return model, 0.0, lambda: images, lambda logits: F.cross_entropy(logits, labels)


def rotation(network, batch, image_size):
    model = nn.Sequential(network, nn.Linear(network.channels, 4))
    images = torch.randint(256, (batch, 3, image_size, image_size), dtype=torch.uint8)
    turns = torch.arange(4).repeat_interleave(batch)

    def inputs():
        scaled = images.float() / 127.5 - 1
        return torch.cat([torch.rot90(scaled, turn, (2, 3)) for turn in range(4)])

    return model, 1e-4, inputs, lambda logits: F.cross_entropy(logits, turns)


def simclr(network, batch, image_size):
    width = network.channels
    last = nn.BatchNorm1d(128, eps=1e-3, momentum=0.01)
    last.bias = None  # a scale alone
    head = [
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width, eps=1e-3, momentum=0.01),
        nn.ReLU(),
    ]
    model = nn.Sequential(network, *head, nn.Linear(width, 128, bias=False), last)
    views = torch.randint(256, (2 * batch, 3, image_size, image_size), dtype=torch.uint8)
    labels = torch.cat([torch.arange(batch, 2 * batch), torch.arange(batch)])

    def loss(z):
        z = F.normalize(z)
        return F.cross_entropy(z @ z.T / 0.5 - 1e9 * torch.eye(2 * batch), labels)

    return model, 1e-4, lambda: views.float() / 255, loss


def contender(method, who, precision, name, batch, image_size, width):
    """A function that takes one step, and the number of parameters."""
    torch.set_num_threads(os.cpu_count())
    if name in step_by_step.VITS:
        network = ViT(name, image_size, width)
    else:
        network = ResNet(name, method != "supervised" or image_size <= 64, width)
    model, decay, inputs, loss_of = globals()[method](network, batch, image_size)
    layout = torch.channels_last if who == "torch_nhwc" else torch.contiguous_format
    model = model.to(memory_format=layout).train()
    optimizer = optimizer_of(model, decay)
    half = precision != "float32"

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", getattr(torch, precision), enabled=half):
            features = network(inputs().contiguous(memory_format=layout))
        loss = loss_of(model[1:](features))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    step_by_step.take_turns(*contender(*json.loads(sys.argv[2])))
