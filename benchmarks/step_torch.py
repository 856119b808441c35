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

    def maps(self, x):
        """The outputs of blocks 2, 3 and 4, of a ResNet of 18 or 34 layers, v1."""
        found, root = [], self.layers[0].out_channels
        for layer in self.layers:
            y = layer(x)
            if isinstance(layer, Unit) and y.shape[2] < x.shape[2] and x.shape[1] > root:
                found.append(x)
            x = y
        return [*found, x]


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


class FCOS(nn.Module):
    """FCOS's head on a new pyramid on three maps: what `tfssl.downstream.protocols.fcos` trains."""

    def __init__(self, network, classes, layers, width, mean, std):
        super().__init__()
        self.network, self.levels = network, 4
        self.shift, self.scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        channels = [network.channels // 4, network.channels // 2, network.channels]
        self.moments = nn.ModuleList(nn.BatchNorm2d(c, 1e-3, 0.1, affine=False) for c in channels)
        normed = lambda layer: nn.Sequential(layer, nn.GroupNorm(32, width))  # noqa: E731
        self.laterals = nn.ModuleList(normed(conv(c, width, 1)) for c in channels)
        self.outputs = nn.ModuleList(normed(conv(width, width, 3, s)) for s in (1, 1, 1, 2))

        def tower():
            block = lambda: (*normed(conv(width, width, 3)), nn.ReLU(inplace=True))  # noqa: E731
            return nn.Sequential(*(layer for _ in range(layers) for layer in block()))

        self.of_classes, self.of_boxes = tower(), tower()
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.sides, self.quality = (nn.Conv2d(width, c, 3, padding=1) for c in (4, 1))
        for last, bias in ((self.classes, -4.6), (self.sides, 1.39), (self.quality, 0.0)):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, bias)
        self.factors = nn.Parameter(torch.ones(self.levels))

    def forward(self, images):
        maps = self.network.maps((images.float() / 255 - self.shift) / self.scale)
        sums = [lateral(n(x)) for lateral, n, x in zip(self.laterals, self.moments, maps)]
        for i in (1, 0):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], scale_factor=2.0, mode="nearest")
        levels = [output(x) for output, x in zip(self.outputs, sums)]
        levels.append(self.outputs[3](levels[2]))
        found = []
        for x, factor in zip(levels, self.factors):
            boxes = self.of_boxes(x)
            classes = self.classes(self.of_classes(x))
            each = torch.cat([classes, factor * self.sides(boxes), self.quality(boxes)], 1)
            found.append(each.permute(0, 2, 3, 1).flatten(1, 2))  # NxLx(K+5)
        return torch.cat(found, 1)


def fcos(network, batch, image_size):
    classes, objects, layers, width = 20, 10, 2, 128
    model = FCOS(network, classes, layers, width, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    images = torch.randint(256, (batch, 3, image_size, image_size), dtype=torch.uint8)
    low = 0.7 * torch.rand(batch, objects, 2)
    boxes = torch.cat([low, low + 0.05 + 0.25 * torch.rand(batch, objects, 2)], -1) * image_size
    of_objects = torch.randint(classes, (batch, objects))
    places, strides, ranges = [], [], []
    for level in range(4):
        stride = 8 * 2**level
        row = (torch.arange(image_size // stride) + 0.5) * stride
        places.append(torch.cartesian_prod(row, row))
        strides += [stride] * len(places[-1])
        ends = [8 * stride / 2 * (level > 0), 8 * stride if level < 3 else float("inf")]
        ranges += [ends] * len(places[-1])
    places, strides, ranges = torch.cat(places), torch.tensor(strides), torch.tensor(ranges)

    def assigned():
        low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
        at = places[None, :, None]
        ends = torch.cat([at - low, high - at], -1)  # NxLxMx4
        far = (at - (low + high) / 2).abs().amax(-1) / strides[:, None]
        side = ends.amax(-1)
        fits = (far < 1.5) & (ends.amin(-1) > 0)
        fits &= (side >= ranges[:, :1]) & (side <= ranges[:, 1:])
        area = torch.where(fits, (high - low).prod(-1), float("inf"))
        least, owner = area.min(-1)
        return owner, least < float("inf")

    def loss(outputs):
        with torch.no_grad():
            owner, positive = assigned()
            labels = F.one_hot(of_objects.gather(1, owner), classes) * positive[..., None]
        logits, sides, quality = outputs.split([classes, 4, 1], -1)
        labels, p = labels.float(), torch.sigmoid(logits)
        of_classes = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        of_classes = of_classes * (labels - p).abs() ** 2 * (labels - 0.75).abs()
        count = positive.sum().clamp(min=1)
        image, place = positive.nonzero(as_tuple=True)
        truth, at = boxes[image, owner[image, place]], places[place]  # Px4
        ends = strides[place, None] * torch.exp(sides[image, place].clamp(-8, 8))
        found = torch.cat([at - ends[:, :2], at + ends[:, 2:]], 1)
        true_ends = torch.cat([at - truth[:, :2], truth[:, 2:] - at], 1)
        short, long = (
            f(true_ends[:, :2], true_ends[:, 2:]) for f in (torch.minimum, torch.maximum)
        )
        central = (short / long).prod(1).sqrt()
        area = lambda low, high: (high - low).clamp(min=0).prod(1)  # noqa: E731
        pairs = (truth[:, :2], truth[:, 2:]), (found[:, :2], found[:, 2:])
        (a, b), (c, d) = pairs
        both = area(torch.maximum(a, c), torch.minimum(b, d))
        union = area(a, b) + area(c, d) - both
        hull = area(torch.minimum(a, c), torch.maximum(b, d))
        generalized = both / union - (hull - union) / hull
        of_boxes = (central * (1 - generalized)).sum() / central.sum().clamp(min=1e-6)
        of_quality = F.binary_cross_entropy_with_logits(
            quality[image, place, 0], central, reduction="sum"
        )
        return (of_classes.sum() + of_quality) / count + of_boxes

    return model, 0.0, lambda: images, loss


def contender(method, who, precision, name, batch, image_size, width):
    """A function that takes one step, and the number of parameters."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as TensorFlow counts
    if name in step_by_step.VITS:
        network = ViT(name, image_size, width)
    else:
        small = method not in ("supervised", "fcos") or image_size <= 64
        network = ResNet(name, small, width)
    model, decay, inputs, loss_of = globals()[method](network, batch, image_size)
    layout = torch.channels_last if who == "torch_nhwc" else torch.contiguous_format
    model = model.to(memory_format=layout).train()
    if method == "fcos":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimizer = optimizer_of(model, decay)
    half = precision != "float32"

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", getattr(torch, precision), enabled=half):
            images = inputs().contiguous(memory_format=layout)
            features = (model if method == "fcos" else network)(images)
        loss = loss_of(features if method == "fcos" else model[1:](features))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    step_by_step.take_turns(*contender(*json.loads(sys.argv[2])))
