"""All that needs a GPU, in one command: the tests, and the comparison with PyTorch.

    python -m benchmarks.gpu                          everything: about ten minutes on a large card
    python -m benchmarks.gpu --only dense training    some groups
    python -m benchmarks.gpu --budget 550             ends after so many seconds

It needs an NVIDIA GPU, CuPy and a PyTorch with CUDA, nothing of it to be installed with tinyseg. The groups:

    tests          `pytest -m gpu --require-gpu`, in half of the budget at most, if others are to run, too
    dense, dilated, depthwise, transposed, pooling, normalisation, resize, loss
                   single operators against PyTorch and cuDNN, and against what the card can do at best
    training       a whole step of a U-Net
    crf            the dense CRF, against pydensecrf on one core: see crf_gpu.py

The results go to one file, `results/gpu.json` (or --output), after every single row: a run that is killed keeps
what it has, and a later one adds to it. Each group runs in a process of its own, since a kernel that reads outside
of its memory takes all of a process's GPU with it. The file says which groups did not come to their end. Results
of another machine, or of other versions, are not mixed: then the file begins anew.

Each row has the goal of the project beside it (the rival's time divided by ours, at least), and whether it is met.
The command fails if a test fails, or if a result is wrong; a goal that is missed is a result like any other.
`python -m benchmarks.table` puts the file into the README. How it is measured: gpu_measure.py.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from benchmarks.harness import RESULTS, rival_of
from tinyseg.cuda import machine

ROOT = Path(__file__).parents[1]
OPERATORS = ("dense", "dilated", "depthwise", "transposed", "pooling", "normalisation", "resize", "loss")
GROUPS = ("tests", *OPERATORS, "training", "crf")
KEY = ("group", "name", "pass", "precision")
GRACE = 30.0  # seconds that a group may run longer than it should, before it is killed


# ------------------------------------------------------------------------------------------------------ the file


class Report:
    """What the file says. It is written after every change."""

    def __init__(self, path: Path, machine: dict[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"machine": machine, "left out": [], "rows": []}
        if path.exists():
            old = json.loads(path.read_text())
            if old.get("machine") == machine:
                self.content = old
            else:
                print(f"{path} was of another machine or of other versions, and begins anew", flush=True)

    def begin(self, groups: Sequence[str]) -> None:
        """These groups are left out until they end."""
        self.content["left out"] = [g for g in GROUPS if g in {*self.content["left out"], *groups}]
        self.write()

    def end(self, group: str) -> None:
        self.content["left out"].remove(group)
        self.write()

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, in place of an older one about the same."""
        rows, key = self.content["rows"], [row.get(name) for name in KEY]
        row = row | {"measured": datetime.now(UTC).isoformat(timespec="seconds")}
        for index, other in enumerate(rows):
            if [other.get(name) for name in KEY] == key:
                rows[index] = row
                break
        else:
            rows.append(row)
        self.write()

    def put_part(self, name: str, part: Any) -> None:
        """Set what is not a row: the tests, the card, the settings."""
        self.content[name] = part
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


@dataclass
class Budget:
    """How much time is left."""

    seconds: float | None = None  # None: as much as it takes

    def __post_init__(self):
        self.start = time.monotonic()

    @property
    def left(self) -> float | None:
        return None if self.seconds is None else self.seconds - (time.monotonic() - self.start)

    @property
    def is_spent(self) -> bool:
        return self.left is not None and self.left <= 0


# -------------------------------------------------------------------------------------------------------- groups


@dataclass
class Job:
    """One row that is to be measured."""

    identity: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


class Outcome(NamedTuple):
    finished: bool  # nothing was left out
    right: bool  # nothing failed


def run_rows(jobs: Iterable[Job], report: Report, budget: Budget, is_alive: Callable[[], bool]) -> Outcome:
    """Measure rows while there is time. One that fails is kept with its reason, and is no reason to stop.

    is_alive: does the GPU still work for this process? Asked after a failure.
    """
    right = True
    for job in jobs:
        if budget.is_spent:
            print("the time is over: the rest of the group is left out", flush=True)
            return Outcome(False, right)
        try:
            row = job.measure()
        except Exception as error:  # a wrong result, a kernel that does not start, memory that is full
            row, right = job.identity | {"failure": f"{type(error).__name__}: {error}"}, False
        report.put(row)
        print(line(row), flush=True)
        if "failure" in row and not is_alive():
            print("the GPU works no more for this process: the rest of the group is left out", flush=True)
            return Outcome(False, False)
    return Outcome(True, right)


def run_tests(report: Report, budget: Budget, selection: Sequence[str] = ("tests",)) -> Outcome:
    """Run the tests that need a GPU, and note what came of them. When the time is over, those done until then."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, "tests.xml")
        options = ["-m", "gpu", "--require-gpu", "-q", "--continue-on-collection-errors", f"--junitxml={xml}"]
        command = [sys.executable, "-m", "pytest", *options, *selection]
        process = subprocess.Popen(command, cwd=ROOT, preexec_fn=_heed_interrupts)
        finished = True
        try:
            process.wait(budget.left)
        except subprocess.TimeoutExpired:
            finished = False
            process.send_signal(signal.SIGINT)  # pytest writes down what it has
            try:
                process.wait(GRACE / 2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        counts = {"passed": 0, "failures": ["pytest was killed, or could not start"]}
        if xml.exists():
            counts = summary_of_tests(xml)
            counts["passed"] -= not finished  # pytest counts the test that it was interrupted in
    report.put_part("tests", {"command": "pytest " + " ".join(options[:3]), "finished": finished, **counts})
    print({name: value for name, value in counts.items() if name != "failures"}, flush=True)
    return Outcome(finished, bool(counts["passed"]) and not counts["failures"])


def _heed_interrupts() -> None:
    """A job in a shell's background ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def summary_of_tests(xml: Path) -> dict[str, Any]:
    """How many passed, were skipped and failed; the names of those that failed, with a line of the reason."""
    suite = ElementTree.parse(xml).getroot().find("testsuite")
    assert suite is not None
    skipped, failures = 0, []
    for case in suite.iter("testcase"):
        skipped += case.find("skipped") is not None
        for kind in ("failure", "error"):
            problem = case.find(kind)
            if problem is not None:
                reason = (problem.get("message") or "").partition("\n")[0][:300]
                failures.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    total = len(suite.findall("testcase"))
    return {
        "passed": total - skipped - len(failures),
        "skipped": skipped,
        "failed": len(failures),
        "seconds": round(float(suite.get("time") or 0), 1),
        "failures": failures,
    }


def run_group(group: str, report: Report, budget: Budget) -> Outcome:
    """Run one group in this process."""
    if group == "tests":
        return run_tests(report, budget)
    from benchmarks import gpu_measure

    card = gpu_measure.measure_card(gpu_measure.CudaEvents())
    report.put_part("card", card._asdict())
    report.put_part("settings", {name: gpu_measure.settings(name) for name in gpu_measure.TOLERANCES})
    return run_rows(jobs(group, card), report, budget, gpu_measure.gpu_is_alive)


def jobs(group: str, card: Any) -> Iterator[Job]:
    if group == "training":
        return training_jobs(card)
    if group == "crf":
        return crf_jobs()
    return operator_jobs(group, card)


def operator_jobs(group: str, card: Any) -> Iterator[Job]:
    from benchmarks import gpu_cases, gpu_measure

    for case in gpu_cases.cases():
        if case.group != group:
            continue
        for precision in case.precisions:
            for direction in case.passes:
                about = case, direction, precision
                stopwatch = gpu_measure.CudaEvents()
                measure = partial(gpu_measure.measure, *about, card, stopwatch)
                yield Job(gpu_measure.identity(*about), measure)


def training_jobs(card: Any) -> Iterator[Job]:
    from benchmarks import gpu_training

    for identity, about in gpu_training.rows():
        yield Job(identity, partial(gpu_training.measure, *about, card, gpu_training.WallClock()))


def crf_jobs() -> Iterator[Job]:
    from benchmarks import crf, crf_gpu

    for identity, measure in crf_gpu.rows(crf_gpu.picture(), crf.energies()):
        yield Job(identity, measure)


def line(row: dict[str, Any]) -> str:
    """What the screen says about a row."""
    about = ", ".join(row[name] for name in KEY[1:] if name in row)
    if "failure" in row:
        return f"{about}: {row['failure']}"
    rival = rival_of(row)
    ours, theirs = row["tinyseg"], row[rival]
    shares = ""
    if "share of floor" in ours:
        shares = f", floor {ours['share of floor']:.0%} and {theirs['share of floor']:.0%}"
    missed = "" if row["met"] in (True, None) else f", MISSES {row['goal']}"
    ratio = f"ratio {row['ratio']:.2f}"
    return f"{about}: {ours['median']:.3f} ms, {rival} {theirs['median']:.3f} ms, {ratio}{shares}{missed}"


# ------------------------------------------------------------------------------------------------------ command


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    chosen = [group for group in GROUPS if group in (options.only or GROUPS)]
    reason = problem()
    if reason is not None:
        raise SystemExit(f"the benchmark needs a GPU: {reason}")
    budget = Budget(options.budget)
    report = Report(options.output, description())
    report.begin(chosen)
    if len(chosen) == 1:
        outcome = run_group(chosen[0], report, budget)
        if outcome.finished:
            report.end(chosen[0])
        right = outcome.right
    else:
        results = [run_apart(group, options.output, budget) for group in chosen]
        right = all(results)
    print(verdict(json.loads(options.output.read_text())))
    if not right:
        raise SystemExit(1)


def run_apart(group: str, output: Path, budget: Budget) -> bool:
    """Run a group in a process of its own. Was everything in it right?"""
    left = budget.left
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", group, "--output", str(output)]
    if left is not None:
        if left <= 0:
            print(f"{group}: the time is over", flush=True)
            return True
        left = left / 2 if group == "tests" else left
        command += ["--budget", f"{left:.0f}"]
    print(f"--- {group}", flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, timeout=left and left + GRACE).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{group}: killed, since it did not end in time", flush=True)
        return False


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="end by then")
    parser.add_argument("--output", type=lambda name: Path(name).resolve(), default=RESULTS / "gpu.json")
    return parser


def problem() -> str | None:
    """What is missing, in one sentence."""
    reason = machine.problem()
    if reason is not None:
        return reason
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is the rival here, and it is missing: pip install torch (a build with CUDA)"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU: it may be a build for the CPU alone, see pytorch.org"
    return None


def description() -> dict[str, Any]:
    """The machine, the card and the versions of everything that the results depend on."""
    import torch

    from benchmarks import harness
    from tinyseg.cuda import nvrtc

    card = torch.cuda.get_device_properties(0)
    return harness.machine() | {
        "gpu": card.name,
        "multiprocessors": card.multi_processor_count,
        "gpu memory, bytes": card.total_memory,
        "gpu software": machine.name(),
        "NVRTC": ".".join(map(str, nvrtc.version())),
        "CUDA of PyTorch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def verdict(content: dict[str, Any]) -> str:
    """What came of it, in a few lines."""
    rows = content["rows"]
    goals = [row for row in rows if row.get("met") is not None]
    lines = [f"{sum(row['met'] for row in goals)} of {len(goals)} goals are met"]
    lines += [f"wrong or not run: {line(row)}" for row in rows if "failure" in row]
    if content["left out"]:
        lines.append(f"not finished: {', '.join(content['left out'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
