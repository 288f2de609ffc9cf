"""Time the exact nearest neighbours against scikit-learn's brute force and Faiss.

    python benchmarks/nearest.py                        # 10,000 queries in 50,000 rows
    python benchmarks/nearest.py --rows 1000000 --k 8 --memory

All sides search the same random unit vectors, one after the other in each repeat, on
the same two threads; printed are medians, and theirs / ours (more than 1: ours is
faster). Ours includes the checks and the transfer of the gallery, and its compilation
is left out as a warm-up (its time is printed). `--alone` leaves the others out, which
search on the processor and take minutes where ours has a GPU. `--memory` runs ours
alone too, in a process of its own, and prints how much the peak of its memory lies
above the two inputs'. Faiss is no dependency: pip install faiss-cpu to see it.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

import numpy as np


def main():
    """Run the benchmark that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, nargs="+", default=[200, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="time ours alone")
    parser.add_argument("--memory", action="store_true", help="ours alone: peak memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    results = []
    data = unit(0, args.queries, args.dim), unit(1, args.rows, args.dim)
    for k in args.k:
        result = (
            measure_memory(*data, k) if args.memory else measure_time(args, *data, k)
        )
        results.append({"k": k} | result)
        if not args.json:
            print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
            print(f"{args.queries:,} queries, {args.rows:,} x {args.dim}, k = {k}")
            for name, value in result.items():
                print(f"  {name:32} {value:>12}")
    if args.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps(vars(args) | machine | {"results": results}, indent=2))


def unit(seed, rows, dim):
    """Random float32 rows of norm 1, made in place."""
    x = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    x /= np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return x


def searchers(gallery, args):
    """Return name -> search(queries, k) -> (_, index) for each side asked for."""
    from eir_jax.evaluation.nearest import nearest

    found = {"eir_jax": lambda queries, k: nearest(queries, gallery, k)}
    if args.alone:
        return found
    from sklearn.neighbors import NearestNeighbors

    for metric in ("euclidean", "cosine"):
        search = NearestNeighbors(algorithm="brute", metric=metric).fit(gallery)
        found[f"scikit-learn {metric}"] = search.kneighbors
    try:
        import faiss
    except ImportError:
        sys.stderr.write("faiss is not installed: left out (pip install faiss-cpu)\n")
    else:
        faiss.omp_set_num_threads(args.threads)
        flat = faiss.IndexFlatIP(gallery.shape[1])
        flat.add(gallery)
        found["faiss IndexFlatIP"] = flat.search
    return found


def measure_time(args, queries, gallery, k):
    """Milliseconds of each side, the ratios, and the share of equal neighbours."""
    sides = searchers(gallery, args)
    start = time.perf_counter()
    _, ours = sides["eir_jax"](queries, k)
    first = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in sides}
    agree = {}
    for _ in range(args.repeats):
        for name, search in sides.items():
            start = time.perf_counter()
            _, index = search(queries, k)
            times[name].append(time.perf_counter() - start)
            agree[name] = float(np.mean(index == ours))
    median = {name: statistics.median(x) for name, x in times.items()}
    result: dict[str, float] = {}
    result |= {f"{name} ms": round(1000 * x) for name, x in median.items()}
    result["eir_jax first call ms"] = round(1000 * first)
    for name in list(median)[1:]:
        result[f"{name} / eir_jax"] = round(median[name] / median["eir_jax"], 2)
        result[f"{name} same index"] = round(agree[name], 6)
    return result


def measure_memory(queries, gallery, k):
    """Peak memory of this process in MB, above what JAX and the inputs hold."""
    import jax

    from eir_jax.evaluation.nearest import nearest

    jax.block_until_ready(jax.numpy.zeros(1))
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    start = time.perf_counter()
    nearest(queries, gallery, k)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {
        "eir_jax ms, with compilation": round(1000 * seconds),
        "inputs MB": round((queries.nbytes + gallery.nbytes) / 1e6),
        "held before MB": round(before),
        "peak above that MB": round(peak - before),
    }


if __name__ == "__main__":
    main()
