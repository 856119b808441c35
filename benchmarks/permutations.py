"""How far apart are the permutations of the jigsaw task, and how long does it take to choose them?

    python benchmarks/permutations.py                          # 100, 1,000 and 10,000 of 9 patches, both criteria
    python benchmarks/permutations.py --counts 100,1000 --seed 1

How to read the table: seconds are wall time on one core, listing all 362,880 candidates included; a
model with 100 permutations pays the first line once, when it is made. min and mean are the smallest
and the mean Hamming distance between two permutations of the set; of random permutations of 9 it is
8. "bound" is the largest mean that a set of n can have, reached where every patch is equally often
in every place: 9 - (n - 9) / (n - 1) for n >= 9. We promise at n = 1,000 a mean of at least 8.00
(criterion mean) or a smallest distance of at least 5 (criterion min), within 3 seconds; and 60
seconds at n = 10,000. The published file of 100 has min 2, mean 8.08.
"""

import argparse
import time


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="100,1000,10000", help="sizes of the sets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from tfssl.pretext.parts import permutations

    print(f"{'count':>6}  {'criterion':9}  {'seconds':>7}  {'min':>3}  {'mean':>6}  {'bound':>6}")
    for count in map(int, args.counts.split(",")):
        for criterion in permutations.CRITERIA:
            start = time.perf_counter()
            table = permutations.greedy(count, criterion=criterion, seed=args.seed)
            seconds = time.perf_counter() - start
            apart = permutations.distances(table)
            bound = 9 - max(count - 9, 0) / max(count - 1, 1)
            print(
                f"{count:6}  {criterion:9}  {seconds:7.2f}  {apart.min():3}  {apart.mean():6.3f}  "
                f"{bound:6.3f}"
            )


if __name__ == "__main__":
    main()
