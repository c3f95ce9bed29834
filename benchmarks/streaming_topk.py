"""Memory and speed of tracking the loss changes of a stream of tokens: the largest rises and falls and a sample.

python benchmarks/streaming_topk.py [--millions 1000] [--chunk 262144] [--k 1000] [--sample 10000] [--threads 2]

Targets: at least 5 million losses per second on two cores, and memory that does not grow with the stream.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from opposing_signals.signals.streaming import LossChangeStream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1000, help="losses in the stream")
    parser.add_argument("--chunk", type=int, default=1 << 18)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2, help="each tracks a part of the stream; then they are merged")
    arguments = parser.parse_args()
    chunks = max(1, round(arguments.millions * 1e6 / arguments.chunk / arguments.threads))
    # A few chunks drawn beforehand, so that drawing random numbers is not timed.
    generator = np.random.default_rng(0)
    before = generator.exponential(3, (4, arguments.chunk)).astype(np.float32)
    after = before + generator.standard_t(3, before.shape).astype(np.float32) / 10
    streams = [LossChangeStream(arguments.k, arguments.sample) for _ in range(arguments.threads)]

    def track(part: int, numbers: range) -> None:
        for number in numbers:
            ids = np.arange(arguments.chunk) + (number * arguments.threads + part) * arguments.chunk
            streams[part].update(ids, before[number % 4], after[number % 4])

    print(f"k {arguments.k}, sample {arguments.sample}, chunks of {arguments.chunk}, {arguments.threads} threads")
    print("  losses (millions)  millions a second  peak memory (MB)")
    seconds, peaks, tenth = 0.0, [], -(-chunks // 10)
    with ThreadPoolExecutor(arguments.threads) as pool:
        for first in range(0, chunks, tenth):
            started = time.perf_counter()
            part = range(first, min(first + tenth, chunks))
            list(pool.map(lambda thread, part=part: track(thread, part), range(arguments.threads)))
            seconds += time.perf_counter() - started
            count = sum(stream.count for stream in streams)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
            print(f"  {count / 1e6:<19.1f}{count / seconds / 1e6:<19.1f}{peaks[-1]:.1f}", flush=True)
    whole = streams[0]
    for stream in streams[1:]:
        whole.merge(stream)
    rate, growth = whole.count / seconds / 1e6, peaks[-1] - peaks[0]
    print(f"speed  {rate:.1f} million a second >= 5 {'met' if rate >= 5 else 'MISSED'}")
    print(f"memory grew by {growth:.1f} MB over the last nine tenths <= 10 {'met' if growth <= 10 else 'MISSED'}")


if __name__ == "__main__":
    main()
