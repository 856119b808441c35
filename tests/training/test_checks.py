"""Contradictions between settings. All that a command line can get wrong is in
tests/test_mistakes.py."""

import pytest

from tfssl.config.configs import FinetuneConfig, TrainConfig
from tfssl.errors import UserError
from tfssl.training import checks


def test_a_batch_of_the_loss_is_a_batch_in_parts():
    config = checks.pretraining(
        TrainConfig().replace(workdir="w", batch_size=8, loss_batch_size=32)
    )
    found = (
        config.optimization.batch_size,
        config.accelerators.accumulate_steps,
        config.accelerators.loss_batch_size,
    )
    assert found == (32, 4, 0)
    assert checks.pretraining(config) == config  # as its record says it


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"loss_batch_size": 12, "batch_size": 8},
            "--loss_batch_size=12 must be a multiple of --batch_size=8",
        ),
        (
            {"loss_batch_size": 16, "batch_size": 8, "accumulate_steps": 2},
            "stands in for --accumulate_steps",
        ),
        ({"sync_batch_norm": True, "bn_group_size": 2}, "--sync_batch_norm and --bn_group_size"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': choose one of sgd"),
        ({"precision": "half"}, "--precision=half: choose one of auto"),
        ({"data_service": "grpc://a:1", "deterministic": True}, "contradicts --deterministic"),
        ({"epochs": 0.0}, "--epochs=0: a run has a length above 0"),
        ({"workdir": None}, "--workdir is missing"),
        ({"knn_probe": 5}, "--knn_probe=5 needs images"),
        (
            {"validation_steps": 1500},
            "--validation_steps=1500 is not a multiple of --checkpoint_steps=1000",
        ),
        (
            {"final_weight_decay": 0.4},
            "--final_weight_decay=0.4 needs an optimizer that carries weight decay itself",
        ),
        ({"final_rate": 0.1}, "--final_rate=0.1 is where a cosine ends, and --schedule=piecewise"),
        ({"initial_rate": 0.1, "warmup_epochs": 0.0}, "--initial_rate=0.1 is where warm-up begins"),
    ],
)
def test_of_pretraining(settings, message):
    with pytest.raises(UserError, match=message):
        checks.pretraining(TrainConfig().replace(**{"workdir": "w", **settings}))


@pytest.mark.parametrize("name", ["lars", "lars_byol"])
def test_decay_of_all_is_refused_where_the_optimizer_decays_kernels(name):
    config = TrainConfig(task_settings={"decay": "all"}).replace(workdir="w", optimizer=name)
    with pytest.raises(UserError, match=f"{name} decays kernels alone"):
        checks.pretraining(config)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"module": None}, "--module is missing"),
        ({"layer_decay": 0.5, "freeze": True}, "--layer_decay=0.5 and --freeze"),
        ({"drop_path": 0.1, "freeze": True}, "--drop_path=0.1 and --freeze"),
        ({"mixup": 0.8, "batch_size": 7}, "--batch_size=7 is odd"),
        ({"mix_probability": 0.3}, "--mix_probability=0.3 is that of mixup or CutMix"),
        ({"mix_switch": 0.3, "mixup": 0.8}, "--mix_switch=0.3 chooses between"),
        ({"train_list": "a", "train_labels": "1%"}, "--train_labels and --train_list"),
        ({"schedule": "step"}, "--schedule=step: choose one of"),
    ],
)
def test_of_fine_tuning(settings, message):
    good = {"workdir": "w", "module": "m"}
    assert checks.finetuning(FinetuneConfig().replace(**good)) == FinetuneConfig().replace(**good)
    with pytest.raises(UserError, match=message):
        checks.finetuning(FinetuneConfig().replace(**{**good, **settings}))
