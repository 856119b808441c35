"""How far do the joint-embedding methods come on photographs in one small budget? Imagenette's ten
classes, a quarter-width ResNet-18 at 96 pixels, as many steps of as many images for each method.

    python studies/methods_imagenette.py --data folder:imagenette --out runs/imagenette --processes 2

The recipes are those of CIFAR-10 (TASK/cifar10_cpu.flags) but for what a larger image needs and the
steps; nothing was searched on these images. Pretraining has the training split without labels. How
to read the table: see studies/methods_cifar10.py. Logistic regression and 20 nearest neighbors have
the labels of --labels training images, and the rest of them choose the endpoint; the test images
are the split `val`. The least distances are over both protocols.
"""

import argparse

import methods_cifar10 as methods

JOINT_EMBEDDING = (
    "random", "cmc_random", "rotation", "instance_discrimination", "pirl", "simclr", "dcl", "moco", "infomin", "clsa", "byol",
    "simsiam", "swav", "deepcluster_v2", "barlow_twins", "vicreg", "nnclr", "moco_v3", "dino", "lejepa", "cmc",
    "pic", "pixpro", "local_aggregation", "supervised",
)  # fmt: skip
IMAGES = "--image_size=96 --resize=128 --stem=imagenet --min_area=0.2"
BUDGET = "--train_steps=1500 --batch_size=128 --precision=float32"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="folder:imagenette", help="a source with splits train and val"
    )
    parser.add_argument(
        "--labels", type=int, default=3200, help="training images of the evaluation"
    )
    evaluation = ("--test_split=val", "--image_size=96", "--resize=110")
    parser.set_defaults(
        held_out=800, short=False, plot=None, extra=f"{IMAGES} {BUDGET}", evaluation=evaluation
    )
    methods.run(parser, "runs/imagenette", JOINT_EMBEDDING, "0")


if __name__ == "__main__":
    main()
