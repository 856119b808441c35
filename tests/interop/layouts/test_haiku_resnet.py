"""BYOL's names, as haiku's modules call themselves."""

import numpy as np

from tfssl.interop import load
from tfssl.interop.formats import weights

WIDTH = 4


def test_every_weight_is_found():
    theirs, ours, rng = {}, {}, np.random.default_rng(0)
    begin = "experiment_state/online_{}/res_net50/~/{}"

    def conv(name, our, size, inputs, outputs):
        value = rng.normal(size=[size, size, inputs, outputs]).astype(np.float32)
        theirs[begin.format("params", f"{name}/w")] = ours[f"{our}/kernel"] = value

    def norm(name, our, channels):
        for there, here in {
            ("params", "scale"): "gamma",
            ("params", "offset"): "beta",
            ("state", "~/mean_ema/average"): "moving_mean",
            ("state", "~/var_ema/average"): "moving_variance",
        }.items():
            value = rng.uniform(0.5, 1.5, [1, 1, 1, channels]).astype(np.float32)
            theirs[begin.format(there[0], f"{name}/{there[1]}")] = value
            ours[f"{our}/{here}"] = value[0, 0, 0]
        theirs[begin.format("state", f"{name}/~/mean_ema/counter")] = np.int32(5)
        theirs[begin.format("state", f"{name}/~/mean_ema/hidden")] = value

    conv("initial_conv", "root_conv", 7, 3, WIDTH)
    norm("initial_batchnorm", "root_bn", WIDTH)
    inputs = WIDTH
    for group, units in enumerate((3, 4, 6, 3)):
        outputs = 4 * WIDTH * 2**group
        for unit in range(units):
            there, here = f"block_group_{group}/~/block_{unit}/~/", f"block{group + 1}/unit{unit}/"
            if unit == 0:
                conv(f"{there}shortcut_conv", f"{here}projection", 1, inputs, outputs)
                norm(f"{there}shortcut_batchnorm", f"{here}projection_bn", outputs)
            for i, (size, before, after) in enumerate(
                (
                    (1, inputs, outputs // 4),
                    (3, outputs // 4, outputs // 4),
                    (1, outputs // 4, outputs),
                )
            ):
                conv(f"{there}conv_{i}", f"{here}conv{i + 1}", size, before, after)
                norm(f"{there}batchnorm_{i}", f"{here}bn{i + 1}", after)
            inputs = outputs
    target = {name.replace("online", "target"): value for name, value in theirs.items()}
    whole = {**theirs, **target, "experiment_state/online_params/predictor/linear/w": inputs}
    whole = {name: np.asarray(value) for name, value in whole.items()}
    file = weights.Weights("memory", "haiku", whole, sum(x.nbytes for x in whole.values()), "")
    plan = load.plan(file)
    network, unused = load.build(file, plan)
    assert (plan.family, plan.normalization) == ("byol", "imagenet")
    assert network.config().items() >= {"padding": "same", "bn_epsilon": 1e-5}.items()
    found = {v.name.split("/", 1)[1].split(":")[0]: v.numpy() for v in network.variables}
    assert set(found) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert sorted(line.split(":")[0] for line in unused) == ["predictor", "target network"]
