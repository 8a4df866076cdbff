"""The benchmark that needs a GPU, as far as it can be proven without one: every case runs on the host's GPU and
agrees with PyTorch by the check that precedes the timing; times are made up."""

import json
import subprocess
import time

import numpy as np
import pytest

from tinyseg import cuda

torch = pytest.importorskip("torch", reason="PyTorch is the rival of the benchmark: pip install torch")

from benchmarks import crf_gpu, gpu, gpu_cases, gpu_measure, gpu_training, table  # noqa: E402
from benchmarks.gpu_cases import FLOAT32, TF32  # noqa: E402

CASES = {(case.group, case.name): case for case in gpu_cases.cases()}
CARD = gpu_measure.Card(copy=1e12, float32=1e13, tf32=1.5e14, cache=0)


class Stopwatch:
    """Says 1 ms for each call, and does without it."""

    was_ahead = True

    def burst(self, calls):
        return [1.0] * len(calls)


def shrunk(case):
    """The same on two images of 5 x 6 pixels, and with 8 channels in place of many."""

    def few(shape):
        return tuple(8 if n >= 64 else n for n in shape)

    return case._replace(x=(2, 5, 6, *few(case.x[3:])), weights=tuple(map(few, case.weights)))


@pytest.fixture
def on_host(host):
    with cuda.on(host()):
        yield


# --------------------------------------------------------------------------------------------------------- cases


def test_the_cases_are_those_of_the_comparison():
    assert {case.group for case in CASES.values()} == set(gpu.OPERATORS)
    dense = CASES["dense", "convolution 3x3, 64 to 64"]
    assert dense.x == (8, 256, 256, 64) and dense.weights == ((3, 3, 64, 64),)
    assert [p.name for p in dense.passes] == ["forward", "data gradient", "weight gradient"]
    # 9 taps at each pixel, without the 2 * 3 * 256 - 4 at the border that fall into the padding on each side
    assert {p.flops for p in dense.passes} == {2 * 8 * 64 * 64 * (3 * 256 - 2) ** 2}
    assert {p.bytes for p in dense.passes} == {4 * (2 * 8 * 256 * 256 * 64 + 9 * 64 * 64)}
    assert all(p.goals == {FLOAT32: 1.0, TF32: 0.8} for p in dense.passes)
    assert CASES["depthwise", "convolution depthwise 3x3, 64"].passes[0].goals == {FLOAT32: 1.3}
    assert [p.goals for p in CASES["resize", "bilinear resize x2, 64"].passes] == [{FLOAT32: 1.0}, {FLOAT32: 2.0}]


def test_taps_outside_of_the_image_are_no_operations():
    def operations(rate):
        (forward, *_) = CASES["dilated", f"convolution 3x3, rate {rate}, 2048 to 256"].passes
        return forward.flops / (2 * 8 * 33 * 33 * 9 * 2048 * 256)

    assert [round(operations(rate), 2) for rate in (6, 12, 18)] == [0.77, 0.57, 0.40]


@pytest.mark.parametrize("case", CASES.values(), ids=[", ".join(key) for key in CASES])
def test_every_case_agrees_with_torch(on_host, case):
    case = shrunk(case)
    for precision in case.precisions:
        for direction in case.passes:
            row = gpu_measure.measure(case, direction, precision, CARD, Stopwatch(), place="cpu")
            assert set(row["errors"]) == {"tinyseg", "contiguous", "channels last"}
            assert 0 <= row["errors"]["tinyseg"] < gpu_measure.tolerance_of(case, precision)
            assert {name: row[name] for name in gpu.KEY} == {
                "group": case.group,
                "name": case.name,
                "pass": direction.name,
                "precision": precision,
            }
            assert row["ratio"] == 1.0 and row["tinyseg"]["calls"] == row["torch"]["calls"] >= 50
            json.dumps(row)


@pytest.mark.parametrize("direction", range(3))
def test_a_wrong_result_is_not_timed(on_host, direction):
    case = shrunk(CASES["dense", "convolution 3x3, 64 to 64"])
    ours, backward = case.ours, case.ours_backward
    wrong = case._replace(
        ours=lambda x, w: ours(x, cuda.to_device(cuda.to_host(w)[::-1])),
        ours_backward=lambda dy, cache, need: backward(cuda.to_device(cuda.to_host(dy)[:, ::-1]), cache, need),
    )
    with pytest.raises(AssertionError, match=r"tinyseg is off by .* from float64, more than 2e-05"):
        gpu_measure.measure(wrong, case.passes[direction], FLOAT32, CARD, Stopwatch(), place="cpu")


def test_a_nan_is_not_right(on_host):
    case = shrunk(CASES["pooling", "max pooling 2x2, stride 2, 64"])
    ours = case.ours

    def with_a_nan(x):
        y, cache = ours(x)
        values = cuda.to_host(y)
        values.flat[3] = np.nan
        return cuda.to_device(values), cache

    with pytest.raises(AssertionError, match="off by nan"):
        gpu_measure.measure(
            case._replace(ours=with_a_nan), case.passes[0], FLOAT32, CARD, Stopwatch(), place="cpu"
        )


def test_precisions_are_set_for_both_and_taken_back():
    def now():
        backends = torch.backends
        cudnn = backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cudnn.enabled
        return *cudnn, backends.cuda.matmul.allow_tf32, cuda.tf32_is_allowed()

    before = now()
    assert set(gpu_measure.settings(TF32).values()) == {True}
    float32 = gpu_measure.settings(FLOAT32)
    assert float32.pop("torch.backends.cudnn.benchmark") is True
    assert len(float32) == 3 and set(float32.values()) == {False}
    with pytest.raises(ZeroDivisionError), gpu_measure.cudnn(enabled=False):
        assert torch.backends.cudnn.enabled is False
        1 / 0  # noqa: B018
    assert now() == before


# ------------------------------------------------------------------------------------------------ training steps


TINY = gpu_training.Setting(base=4, depth=1, batch=2, side=8)


def test_the_rows_of_the_training_step():
    names = [(identity["name"], identity["precision"]) for identity, _ in gpu_training.rows()]
    setting = "U-Net, 64 channels, depth 4, batch 8, 256 x 256"
    ways = [f"{setting}, eager", f"{setting}, CUDA graph"]
    assert names == [(way, precision) for precision in (FLOAT32, TF32) for way in ways]


@pytest.mark.parametrize(("precision", "least", "most"), [(FLOAT32, 1e-8, 1e-5), (TF32, 1e-5, 1e-2)])
@pytest.mark.parametrize("way", gpu_training.WAYS)
def test_every_training_step_agrees_with_torch(on_host, way, precision, least, most):
    row = gpu_training.measure(way, precision, TINY, CARD, Stopwatch(), place="cpu")
    assert row["errors"].keys() == {"tinyseg", "contiguous", "channels last"}
    assert row["errors"]["tinyseg"].keys() == gpu_training.TOLERANCES.keys()
    assert all(least < error < most for error in row["errors"]["tinyseg"].values())
    assert row["name"] == f"U-Net, 4 channels, depth 1, batch 2, 8 x 8, {way}"
    assert (row["ratio"], row["goal"]) == (1.0, {FLOAT32: 1.0, TF32: 0.8}[precision])
    # Convolutions 3x3 at 64, 16 and 64 pixels, the transposed one, and the classifier, of two images
    parts = [
        64 * 9 * (3 * 4 + 4 * 4),
        16 * 9 * (4 * 8 + 8 * 8),
        16 * 4 * 8 * 4,
        64 * 9 * (8 * 4 + 4 * 4),
        64 * 4 * 21,
    ]
    assert row["operations"] == 2 * 2 * (3 * sum(parts) - 64 * 9 * 3 * 4)
    json.dumps(row)


def test_a_wrong_step_is_not_timed(on_host, monkeypatch):
    class Wrong(gpu_training.OurStep):
        def make_gradients(self):
            super().make_gradients()
            weight = self.network.classifier.weight
            weight.grad = cuda.to_device(-cuda.to_host(weight.grad))

    monkeypatch.setattr(gpu_training, "OurStep", Wrong)
    with pytest.raises(AssertionError, match=r"tinyseg: the gradient of the last layer is off by 2.00e[+]00"):
        gpu_training.measure("eager", FLOAT32, TINY, CARD, Stopwatch(), place="cpu")


def test_a_graph_that_does_something_else_is_not_timed(on_host):
    recorded = gpu_training.RecordedStep(TINY)
    recorded()
    with pytest.raises(AssertionError, match="does not change the weights"):
        gpu_training.check_recorded(recorded, TINY)


# -------------------------------------------------------------------------------------------------------- timing


def test_contenders_and_their_buffers_take_turns():
    done = []

    class Recorder(Stopwatch):
        def burst(self, calls):
            return [float(call()) for call in calls]

    def call(name, index):
        return lambda: done.append(name + str(index)) or index

    contenders = {name: [call(name, index) for index in range(4)] for name in "ab"}
    timings = gpu_measure.alternate(Recorder(), contenders, samples=12)
    warm, timed = done[:16], "".join(done[16:])
    assert sorted(set(warm)) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    assert timed == "a0a1a2a3a0a1b0b1b2b3b0b1" + "a2a3a0a1a2a3b2b3b0b1b2b3"
    assert timings["a"].calls == 12 and timings["a"].median == 1.5


def test_the_stopwatch_sees_to_it_that_the_gpu_is_busy(monkeypatch):
    """On a fake GPU that sleeps one tick for a million cycles, and a Python that needs three ticks for a call."""
    clock = {"python": 0, "gpu": 0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            clock["gpu"] = max(clock["gpu"], clock["python"])
            self.at = clock["gpu"]

        def query(self):
            return self.at <= clock["python"]

        def elapsed_time(self, other):
            return other.at - self.at

    def sleep(cycles):
        clock["gpu"] = max(clock["gpu"], clock["python"]) + cycles / 2**20

    def synchronise():
        clock["python"] = max(clock.values())

    def call():
        clock["python"] += 3
        clock["gpu"] = max(clock["gpu"], clock["python"]) + 0.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    stopwatch = gpu_measure.CudaEvents()
    assert stopwatch.burst([call] * 4) == [0.5] * 4  # and not 3, which is Python's time
    assert stopwatch.was_ahead and stopwatch.cycles == 2**24

    def waits():
        call()
        synchronise()

    stopwatch.burst([waits])
    assert not stopwatch.was_ahead


def test_the_card_and_its_floors():
    card = gpu_measure.measure_card(Stopwatch(), place="cpu", side=4, megabytes=1)
    assert card == gpu_measure.Card(copy=2**20 * 1e3, float32=2 * 64 * 1e3, tf32=2 * 64 * 1e3, cache=0)
    direction = gpu_cases.Pass("forward", None, bytes=4 * 10**9, flops=3 * 10**11)
    assert CARD.floor(direction, TF32) == (4.0, "bytes")
    assert CARD.floor(direction, FLOAT32) == (6.0, "operations")  # a third of 1.5e14, more than 1e13


def test_the_best_of_torch_and_the_goal():
    def time(median):
        return gpu_measure.harness.Timing(median, median, median, 60)

    timings = {"tinyseg": time(2.0), "contiguous": time(5.0), "channels last": time(3.0)}
    row = gpu_measure.compared(timings, (1.5, "bytes"), 1.6)
    assert row["torch"]["memory format"] == "channels last"
    assert (row["ratio"], row["goal"], row["met"]) == (1.5, 1.6, False)
    assert (row["tinyseg"]["share of floor"], row["torch"]["share of floor"]) == (0.75, 0.5)
    assert row["floor"] == {"median": 1.5, "of": "bytes"}
    assert gpu_measure.compared(timings, None, None)["met"] is None
    with pytest.raises(AssertionError, match="PyTorch is off"):
        gpu_measure.compared({"tinyseg": time(2.0)}, None, None)


# ------------------------------------------------------------------------------------------------------- command


def fake_row(group="dense", name="a", direction="forward", precision=FLOAT32, ours=1.0, theirs=2.0, goal=1.0):
    timings = {
        who: gpu_measure.harness.Timing(ms, ms, ms, 60) for who, ms in (("tinyseg", ours), ("contiguous", theirs))
    }
    about = {"group": group, "name": name, "pass": direction, "precision": precision}
    return about | {"x": [8, 5, 6, 64]} | gpu_measure.compared(timings, (0.5, "bytes"), goal)


def job(row, fails=None):
    def measure():
        if fails is not None:
            raise fails
        return row

    return gpu.Job({name: row[name] for name in gpu.KEY}, measure)


@pytest.fixture
def report(tmp_path):
    return gpu.Report(tmp_path / "gpu.json", {"gpu": "fake"})


def read(report):
    return json.loads(report.path.read_text())


def test_rows_are_written_as_they_come(report):
    rows = [fake_row(name=name) for name in "abc"]

    def jobs():
        for index, row in enumerate(rows):
            if index:
                assert [written["name"] for written in read(report)["rows"]] == list("abc"[:index])
            yield job(row)

    assert gpu.run_rows(jobs(), report, gpu.Budget(), lambda: True) == (True, True)
    assert [row["name"] for row in read(report)["rows"]] == list("abc")
    assert "measured" in read(report)["rows"][0]


def test_no_row_begins_after_the_time(report, capsys):
    assert gpu.run_rows([job(fake_row())], report, gpu.Budget(0), lambda: True) == (False, True)
    assert not report.path.exists()
    assert "the time is over" in capsys.readouterr().out


def test_a_failure_is_a_row(report, capsys):
    jobs = [job(fake_row(name="a"), AssertionError("it is off")), job(fake_row(name="b"))]
    assert gpu.run_rows(jobs, report, gpu.Budget(), lambda: True) == (True, False)
    first, second = read(report)["rows"]
    assert first["failure"] == "AssertionError: it is off" and second["ratio"] == 2
    assert "a, forward, float32: AssertionError: it is off" in capsys.readouterr().out
    assert gpu.run_rows(jobs, report, gpu.Budget(), lambda: False) == (False, False)


def test_a_later_run_adds_to_the_file(report):
    report.begin(["dense", "training"])
    report.put(fake_row(ours=1.0))
    report.end("training")
    later = gpu.Report(report.path, {"gpu": "fake"})
    later.begin(["loss"])
    assert read(later)["left out"] == ["dense", "loss"]
    later.put(fake_row(ours=0.5))
    later.put(fake_row(precision=TF32))
    assert [(row["precision"], row["ratio"]) for row in read(later)["rows"]] == [(FLOAT32, 4.0), (TF32, 2.0)]


def test_results_of_another_machine_are_not_mixed(report, capsys):
    report.put(fake_row())
    other = gpu.Report(report.path, {"gpu": "another"})
    assert other.content["rows"] == []
    assert "begins anew" in capsys.readouterr().out


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command on a machine that is said to have a GPU; what it would run in processes of their own."""
    started = []

    def run(command, cwd, timeout):
        started.append((command[command.index("--only") :], timeout))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu, "problem", lambda: None)
    monkeypatch.setattr(gpu, "description", lambda: {"gpu": "fake"})
    monkeypatch.setattr(gpu.subprocess, "run", run)
    return lambda *arguments: gpu.main([*arguments, "--output", str(tmp_path / "gpu.json")]) or started


def test_groups_run_apart_within_the_budget(command, tmp_path):
    started = command("--budget", "100")
    assert [arguments[1] for arguments, _ in started] == list(gpu.GROUPS)
    budgets = [float(arguments[arguments.index("--budget") + 1]) for arguments, _ in started]
    assert 49 <= budgets[0] <= 50 and 99 <= budgets[1] <= 100
    assert all(
        budget < timeout < budget + 2 * gpu.GRACE for budget, (_, timeout) in zip(budgets, started, strict=True)
    )
    assert str(tmp_path / "gpu.json") in started[0][0]
    assert json.loads((tmp_path / "gpu.json").read_text())["left out"] == list(gpu.GROUPS)


def test_no_group_begins_after_the_time(command, capsys):
    assert command("--only", "dense", "loss", "--budget", "0") == []
    assert "loss: the time is over" in capsys.readouterr().out


def test_one_group_runs_in_this_process(command, monkeypatch, tmp_path, capsys):
    def run_group(group, report, budget):
        report.put(fake_row(group))
        report.put(fake_row(group, "b", ours=4.0))
        return gpu.Outcome(True, True)

    monkeypatch.setattr(gpu, "run_group", run_group)
    assert command("--only", "dense") == []
    assert json.loads((tmp_path / "gpu.json").read_text())["left out"] == []
    assert "1 of 2 goals are met" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "run_group", lambda *_: gpu.Outcome(False, False))
    with pytest.raises(SystemExit) as ended:
        command("--only", "dense")
    assert ended.value.code == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["left out"] == ["dense"]


@pytest.mark.parametrize("group", [group for group in gpu.GROUPS if group != "tests"])
def test_a_group_measures_all_its_rows(group, report, monkeypatch):
    """With made-up times: each row of the group is there, and what all of them depend on."""

    def measure_case(case, direction, precision, card, stopwatch):
        assert card is CARD and isinstance(stopwatch, gpu_measure.CudaEvents)
        return fake_row(case.group, case.name, direction.name, precision)

    def measure_step(way, precision, setting, card, stopwatch):
        assert card is CARD and isinstance(stopwatch, gpu_training.WallClock)
        return fake_row("training", way, str(setting), precision)

    monkeypatch.setattr(gpu_measure, "measure_card", lambda stopwatch: CARD)
    monkeypatch.setattr(gpu_measure, "measure", measure_case)

    def crf_rows(image, unary):
        assert image.shape == (375, 500, 3) and unary.shape == (375 * 500, 21)
        for setting in crf_gpu.SETTINGS:
            about = crf_gpu.identity(setting)
            yield about, lambda about=about: fake_row() | about

    monkeypatch.setattr(gpu_training, "measure", measure_step)
    monkeypatch.setattr(crf_gpu, "rows", crf_rows)
    assert gpu.run_group(group, report, gpu.Budget()) == (True, True)
    content = read(report)
    assert content["card"] == CARD._asdict() and content["settings"].keys() == {FLOAT32, TF32}
    cases = [case for case in CASES.values() if case.group == group]
    of_cases = sum(len(case.precisions) * len(case.passes) for case in cases)
    expected = {"training": 4, "crf": 3}.get(group, of_cases)
    assert len(content["rows"]) == expected and {row["group"] for row in content["rows"]} == {group}


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.machine, "problem", lambda: "no NVIDIA driver was found; install one")
    with pytest.raises(SystemExit, match="the benchmark needs a GPU: no NVIDIA driver was found"):
        gpu.main(["--output", str(tmp_path / "gpu.json")])
    assert not (tmp_path / "gpu.json").exists()
    monkeypatch.setattr(gpu.machine, "problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no GPU: it may be a build for the CPU"):
        gpu.main(["--output", str(tmp_path / "gpu.json")])


TESTS = """
import time, pytest
pytestmark = pytest.mark.gpu
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_skipped(): pytest.skip("no reason")
def test_last(tmp_path):
    open({begun!r}, "w").close()
    time.sleep({seconds})
"""


@pytest.mark.parametrize("in_time", [True, False])
def test_the_tests_are_counted(report, tmp_path, in_time):
    begun = tmp_path / "begun"

    class Impatient:
        """Has no time left when the last test begins."""

        @property
        def left(self):
            until = time.monotonic() + 60
            while not begun.exists() and time.monotonic() < until:
                time.sleep(0.05)
            return 0

    option = "def pytest_addoption(parser): parser.addoption('--require-gpu', action='store_true')"
    (tmp_path / "conftest.py").write_text(option)
    (tmp_path / "test_trial.py").write_text(TESTS.format(begun=str(begun), seconds=0 if in_time else 60))
    budget = gpu.Budget() if in_time else Impatient()
    outcome = gpu.run_tests(report, budget, [str(tmp_path), "-p", "no:cacheprovider"])
    assert outcome == (in_time, False)
    tests = read(report)["tests"]
    assert tests["command"] == "pytest -m gpu --require-gpu" and tests["finished"] is in_time
    assert (tests["passed"], tests["skipped"], tests["failed"]) == (1 + in_time, 1, 1)
    assert "test_trial::test_wrong: assert 1 == 2" in tests["failures"][0]


# --------------------------------------------------------------------------------------------------------- table


def test_the_table_is_made_of_the_file(report, monkeypatch):
    report.content["machine"] |= {"torch": "2.11", "cuDNN": 91002}
    report.put_part("card", CARD._asdict())
    report.put(fake_row())
    report.put(fake_row(direction="data gradient", ours=4.0))
    report.put(fake_row(precision=TF32, ours=0.5))
    report.put(fake_row(precision=TF32, direction="data gradient", ours=200, theirs=300))
    report.put(fake_row(name="b", goal=None))
    report.put({"group": "dense", "name": "c", "pass": "forward", "precision": FLOAT32, "failure": "it is off"})
    whole = fake_row(group="training", name="a whole step", ours=31.4)
    report.put({name: value for name, value in whole.items() if name not in ("pass", "x")})
    whole = {name: value for name, value in whole.items() if name not in ("pass", "x", "torch")}
    densecrf = {"group": "crf", "name": "dense CRF", "pydensecrf": {"median": 760}, "pydensecrf measured": "there"}
    report.put(whole | densecrf)
    lines = table.gpu(read(report))
    assert lines[2:4] == [
        "| a, 8 x 5 x 6 pixels | forward, data gradient | 1, 4 | 2.00, 0.50 | 50%, 12% | 0.5, 200 | 4.00, 1.50 "
        "| 100%, 0% |",
        "| b, 8 x 5 x 6 pixels | forward | 1 | 2.00 | 50% |  |  |  |",
    ]
    assert "| a whole step | float32 | 31.4 ms | torch 2 ms | 0.06 |" in lines
    assert "| dense CRF | float32 | 31.4 ms | pydensecrf 760 ms, there | 0.06 |" in lines
    assert "1.00 TB/s, or of its operations at 150 (TF32) or 50 TFLOP/s" in lines[-1]
    assert "3 of the 6 goals in the file are met" in lines[-1] and "on fake, " in lines[-1]
    assert len({line.count("|") for line in lines[:4]}) == 1

    monkeypatch.setattr(table, "RESULTS", report.path.parent)
    text = table.filled("before\n<!-- gpu -->\nold\n<!-- end -->\nafter\n")
    assert text == "\n".join(["before", "<!-- gpu -->", *lines, "<!-- end -->", "after", ""])
    with pytest.raises(SystemExit, match="no place <!-- gpu -->"):
        table.filled("before\n")
    report.path.unlink()
    assert table.filled("before\n") == "before\n"
