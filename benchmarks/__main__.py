"""Time tinyseg against PyTorch and write the results:  python -m benchmarks [operators] [training]

Takes some minutes. Leave the machine alone meanwhile: the medians can take a disturbance, not a second workload.
`python -m benchmarks.table` puts the results into the README.
"""

import sys

from benchmarks import harness


def main(names: list[str]) -> None:
    harness.keep_memory()
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit("PyTorch is the rival here, and it is missing: pip install torch (a CPU build)") from None
    unknown = set(names) - {"operators", "training"}
    if unknown:
        raise SystemExit(f"there is no benchmark {', '.join(sorted(unknown))}: choose operators, training or both")
    if "operators" in names or not names:
        _operators()
    if "training" in names or not names:
        _training()


def _operators() -> None:
    from benchmarks import operators

    rows = []
    for case in operators.cases():
        row = operators.measure(case)
        rows.append(row)
        print(row["name"], flush=True)
        for direction in ("forward", "backward"):
            ours, torch = (row[direction][who]["median"] for who in ("tinyseg", "torch"))
            print(f"    {direction:8} {ours:8.2f} ms, torch {torch:8.2f} ms, ratio {row[direction]['ratio']:.2f}")
    print(harness.write("operators", rows))


def _training() -> None:
    from benchmarks import training

    rows = []
    for base, depth, batch, side in ((16, 3, 4, 128), (32, 3, 2, 256)):
        row = training.measure(base, depth, batch, side)
        rows.append(row)
        ours, torch = row["tinyseg"]["median"], row["torch"]["median"]
        print(f"{row['name']}: {ours:.0f} ms, torch {torch:.0f} ms, ratio {row['ratio']:.2f}", flush=True)
    print(harness.write("training", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
