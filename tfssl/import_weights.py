"""Make a Hub module of weights that another project has published.

  tfssl-import --weights=moco_v2_800ep_pretrain.pth.tar --export_dir=modules/moco_v2
  tfssl-import --weights=vit_base.safetensors --from=timm --normalization=half \\
      --export_dir=modules/vit --license=Apache-2.0
  tfssl-import --weights=mae_pretrain_vit_base.pth --from=mae --dry_run
      what the file holds, and what would be loaded; nothing is written

The network's depth, width and patches are read off the weights' shapes, its padding, epsilon and
normalization are the project's. The module is as tfssl-export writes it: tfssl-eval,
tfssl-finetune, --init_module and every loader of Hub modules take it. Heads stay behind, and are
listed; a weight that is missing is an error. No other project's library is needed, and no code in
the file is run: a pickle that holds more than tensors is refused.

--random_init writes the same network untrained: the baseline of its evaluation. docs/interop.md
has a command for each project.
"""

from collections.abc import Sequence

from absl import flags

from tfssl.config import configs
from tfssl.config.exchange import Import
from tfssl.errors import UserError
from tfssl.runtime import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    configs.define(Import, section=cli.section)


def main(_: Sequence[str]) -> None:
    asked = configs.read(Import, FLAGS)
    path, folder = asked.file(), "" if asked.dry_run else asked.folder()

    import tensorflow as tf

    from tfssl.export.network import save_network
    from tfssl.interop import load
    from tfssl.interop.families import NORMALIZATIONS
    from tfssl.interop.formats import weights
    from tfssl.storage import files

    if folder:
        files.check_writable(folder.rstrip("/").rpartition("/")[0] or ".", "--export_dir, in")
    file = weights.read(path)
    plan = load.plan(file, asked.family)
    network, unused = load.build(file, plan)
    images = asked.normalization or plan.normalization
    if images is None:
        raise UserError(
            f"--normalization is missing: networks of {plan.family} differ, and the file's own "
            "page says it (imagenet: mean 0.485, 0.456, 0.406; half: mean 0.5 and deviation 0.5; "
            "none)"
        )
    links = plan.layout.links(network)
    print(f"{path}: {file.kind}, {len(file.tensors)} tensors, sha256={file.sha256}")
    settings = ", ".join(f"{name}={value}" for name, value in plan.settings.items())
    print(f"network of {plan.family}: {settings}; images: {images}")
    if asked.dry_run:
        for link in links:
            names = " and ".join(f"{v.name} {list(v.shape)}" for v in link.variables)
            print(f"  {plan.keys[link.key]} -> {names}")
    print(f"loaded: {len(links)} weights")
    for line in unused:
        print(f"not used: {line}")
    if asked.dry_run:
        return
    if asked.random_init:
        tf.keras.utils.set_random_seed(asked.seed)
        network = network.twin()
        network.build((None, None, None, 3))
        print(f"in their place: untrained weights, seed {asked.seed}")
    mean, std = NORMALIZATIONS[images]
    size = asked.image_size or load.image_size(network)
    facts = {
        "task": f"{plan.family} (imported)",
        "source": {
            "family": plan.family,
            "file": path.rstrip("/").rpartition("/")[2],
            "sha256": file.sha256,
            "license": asked.license or "not stated",
        },
        "random_init": asked.random_init,
    }
    save_network(network, folder, mean, std, size, asked.resize, facts, asked.tarball)
    print(f"module: {folder}" + (f" and {folder}.tar.gz" if asked.tarball else ""))
    if not asked.license:
        print("its license is not stated: --license=... records what the weights' authors say")
    print(f"next: tfssl-eval --module={folder} --dataset=... --train_split=... --test_split=...")


def run() -> None:
    """Entry point of `tfssl-import`."""
    define_flags()
    cli.run(main, "tfssl-import", goes_on="nothing is published; the same command begins again")


if __name__ == "__main__":
    run()
