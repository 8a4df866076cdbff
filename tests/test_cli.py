"""The command line, as a person uses it: what it prints, what it leaves behind, and how it ends."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyseg
from tinyseg.cli import main
from tinyseg.cuda import OutOfMemory
from tinyseg.train import checkpoint

TINY = {
    "data.size": "16,16",
    "data.train.length": "6",
    "data.val.length": "3",
    "model.base": "2",
    "model.depth": "1",
    "train.batch": "2",
    "train.epochs": "2",
}
SETS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder; returns its exit code, its output and its error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words):
        with tinyseg.use("numpy"), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        code = ended.value.code
        captured = capsys.readouterr()
        return code or 0, captured.out, captured.err

    return command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; made once, as the pictures take a second."""
    folder = tmp_path_factory.mktemp("finished") / "shapes"
    with tinyseg.use("numpy"), pytest.raises(SystemExit) as ended:
        main(["train", *SETS, "--out", str(folder)])
    assert not ended.value.code
    return folder


@pytest.fixture
def trained(run, finished):
    """A copy of it in the empty folder, as the command left it."""
    shutil.copytree(finished, "runs/shapes")
    return Path("runs/shapes")


def refused(result, *words):
    """The command was answered with one sentence and exit code 2."""
    code, out, error = result
    assert code == 2, out + error
    assert "Traceback" not in error
    for word in words:
        assert word in error


# --------------------------------------------------------------------------------------------------- the program


def test_version(run):
    assert run("--version") == (0, f"tinyseg {tinyseg.__version__}\n", "")


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("train", "eval", "predict", "data", "doctor", "bench"):
        assert re.search(rf"\b{command}\b", out)
    for command in (["train"], ["eval"], ["predict"], ["data"], ["data", "check"], ["doctor"], ["bench"]):
        assert run(*command, "--help")[0] == 0


def test_it_starts_without_the_heavy_modules():
    heavy = ("numba", "scipy", "PIL", "matplotlib", "safetensors", "tinyseg.models")
    code = f"import sys, tinyseg.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_commands_and_options(run):
    refused(run("trian"), "No such command", "train")
    refused(run("train", "--epochs", "3"), "No such option")


# ------------------------------------------------------------------------------------------------------- train


def test_train_leaves_a_run_folder_and_says_where(run):
    code, out, error = run("train", *SETS)
    assert (code, error) == (0, "")
    folder = Path("runs/shapes")
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "config.toml",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
        "samples.png",
    ]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert str(folder / "samples.png") in out
    assert out.count("\nepoch ") == 2


def test_a_second_run_gets_a_folder_of_its_own(run, trained):
    assert run("train", *SETS, "--seed", 3)[0] == 0
    assert "seed = 3" in Path("runs/shapes-2/config.toml").read_text()
    refused(run("train", *SETS, "--out", trained), "holds a run already; continue it with --resume")


def test_a_run_is_resumed_by_its_preset_or_its_folder(run, trained):
    for words in (["--resume"], [trained, "--resume"], ["--resume", "--out", trained], ["shapes", "--resume"]):
        code, out, error = run("train", *words, "--set", "train.epochs=3")
        assert code == 0, error
        assert "Resumes" in out
    rows = (trained / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3


def test_nothing_to_resume(run):
    refused(run("train", "--resume"), "there is no run of shapes to resume in runs")
    refused(run("train", "--resume", "--out", "nowhere"), "there is no run folder nowhere")


def test_a_configuration_file_can_be_given(run):
    text = '[model]\nname = "unet_padded"\nbase = 2\ndepth = 1\n[data]\nsize = [16, 16]\ntrain = { length = 2 }\n'
    Path("mine.toml").write_text(text + "val = { length = 1 }\n[train]\nepochs = 1\n")
    assert run("train", "mine.toml")[0] == 0
    assert Path("runs/mine/best.safetensors").exists()


def test_a_run_starts_from_the_weights_of_another(run, trained):
    code, out, error = run("train", *SETS, "--init", trained, "--set", "data.kinds=3")
    assert code == 0, error
    assert re.search(r"^Starts +from .*best.safetensors: \d+ of \d+ parameters and buffers$", out, re.MULTILINE)
    assert re.search(r"^ +not in it, and as they were: classifier$", out, re.MULTILINE)
    assert f'init = "{Path(trained).absolute()}"' in Path("runs/shapes-2/config.toml").read_text()
    refused(run("train", "--init", trained, "--resume"), "--init starts a run, and --resume goes on with one")
    refused(run("train", *SETS, "--init", "absent.pth"), "absent.pth cannot be read: No such file")
    refused(run("train", "--init", trained), "does not fit UNet", "parameters and buffers that are needed")
    assert not Path("runs/shapes-3").exists()


def test_show_prints_a_file_to_start_from_and_trains_nothing(run):
    code, out, _ = run("train", "--show", "--set", "optim.lr=0.125")
    assert code == 0
    assert re.search(r"^lr = 0\.125 +# learning rate", out, re.MULTILINE)
    assert re.search(r"^# clip = none +# longest gradient", out, re.MULTILINE)
    assert not Path("runs").exists()
    Path("mine.toml").write_text(out)
    assert run("train", "mine.toml", "--show")[1] == out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shpaes"], "there is no preset 'shpaes'; did you mean shapes?"),
        (["absent.toml"], "cannot read the configuration absent.toml"),
        (["--set", "optim.learning_rate=1"], "unknown setting optim.learning_rate: did you mean optim.lr?"),
        (["--set", "optim.lr=fast"], "optim.lr must be a number, got 'fast'"),
        (["--set", "nonsense"], "--set needs section.key=value"),
        (["--set", "model.variant=x"], "model: UNet: unknown variant 'x'"),
        (["--seed", "-1"], "train.seed must be at least 0, got -1"),
        (["isbi"], "the data set isbi lies in a folder, and none is given: add --data FOLDER"),
        (["camvid", "--data", "absent"], "/absent. Expected there:"),
        (["--out", "file/run"], "a file stands where a folder is needed"),
    ],
)
def test_what_train_cannot_do_is_said_in_one_sentence(run, words, message):
    Path("file").write_text("")
    refused(run("train", *words), message)
    assert not Path("runs").exists()


def test_a_read_only_folder_is_reported(run, monkeypatch):
    def read_only(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(run("train", *SETS), "cannot write runs/shapes: the folder may not be written to")


def test_debug_shows_the_traceback(run, capsys):
    with pytest.raises(ValueError, match=r"optim.lr must be a number"):
        main(["train", "--debug", "--set", "optim.lr=fast"])


def test_our_own_errors_keep_their_traceback(run, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("tinyseg.train.trainer.train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])


def test_too_little_memory_is_explained(run, monkeypatch):
    def hungry(*arguments, **options):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr("tinyseg.train.trainer.train", hungry)
    refused(run("train"), "not enough memory (Unable to allocate 3 TiB); use a smaller train.batch")


def test_a_gpu_with_too_little_memory_is_explained(run, monkeypatch):
    def hungry(*arguments, **options):
        raise OutOfMemory("the GPU's memory is full: take a smaller batch")

    monkeypatch.setattr("tinyseg.train.trainer.train", hungry)
    refused(run("train"), "memory is full: take a smaller batch. The settings are train.batch and augment.crop")


@pytest.mark.skipif(os.name == "nt", reason="signals are sent another way on Windows")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_cleanly(tmp_path, number, code):
    command = [sys.executable, "-m", "tinyseg.cli", "train", *SETS, "--set", "train.epochs=100000", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    history = tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if history.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (code, "")
    assert f"Stopped by {number.name}" in out
    assert "tinyseg train --resume --out run" in out
    assert (tmp_path / "run" / "last.safetensors").exists()


# --------------------------------------------------------------------------------------------- eval and predict


def test_eval_prints_a_table_of_classes(run, trained):
    code, out, error = run("eval", trained, "--boundary", "--trimap")
    assert code == 0, error
    for word in ("background", "triangle", "IoU %", "boundary F %", "mean IoU", "pixel accuracy", "within 40 px"):
        assert word in out


def test_eval_agrees_with_the_training_run(run, trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads(run("eval", trained, "--weights", "last", "--json")[1])
    for name in ("mean_iou", "pixel_accuracy", "mean_dice"):
        assert scores[name] == rows[-1][name]
    assert json.loads(run("eval", trained, "--split", "test", "--json")[1])["mean_iou"] != scores["mean_iou"]


def test_eval_on_other_classes(run, trained):
    found = checkpoint.load(trained / "best.safetensors")
    others = dataclasses.replace(found.labels, classes=("sky", *found.labels.classes[1:]))
    checkpoint.save(Path("other.safetensors"), dataclasses.replace(found, labels=others))
    refused(run("eval", "other.safetensors"), "knows the classes sky, disk", "; the data set has background, disk")


def test_eval_and_predict_average_over_views(run, trained, rng):
    plain, averaged = (
        json.loads(run("eval", trained, "--json", *words)[1])
        for words in ((), ("--scales", "0.5,1,1.5", "--flip", "--average", "logits"))
    )
    assert plain["mean_iou"] != averaged["mean_iou"]
    code, _, error = run("eval", trained, "--window", 12, "--stride", 4)
    assert code == 0, error
    Path("pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 17, 3), np.uint8)).save("pictures/one.png")
    for words in (["--scales", "0.5,1", "--flip"], ["--window", "12,16"], ["--tile", 8]):
        code, _, error = run("predict", trained, "pictures", *words)
        assert code == 0, error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scales", "half"], "--scales must be numbers with commas, such as 0.5,0.75,1; got 'half'"),
        (["--scales", "0"], "scales must be one or more positive numbers, got (0.0,)"),
        (["--window", "a"], "--window must be one whole number, or HEIGHT,WIDTH; got 'a'"),
        (["--window", "1,2,3"], "--window must be one whole number"),
        (["--window", "8", "--tile", "8"], "an image is cut into tiles or into windows, not both"),
        (["--stride", "8"], "stride is that of a window"),
        (["--average", "mean"], "average must be one of probabilities, logits, maximum; got 'mean'"),
        (["--output-stride", "8"], "unet_padded has one output stride only"),
    ],
)
def test_views_that_make_no_sense(run, trained, words, message):
    refused(run("eval", trained, *words), message)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("one.png")
    refused(run("predict", trained, "one.png", *words), message)


def test_eval_of_what_is_not_there(run, trained):
    refused(run("eval", "runs/other"), "there is no run folder runs/other; there are: runs/shapes")
    refused(run("eval", trained, "--split", "tset"), "did you mean 'test'?")
    refused(run("eval", trained, "--weights", "first"), "--weights must be best or last")
    best = trained / "best.safetensors"
    best.write_bytes(best.read_bytes()[:100])
    refused(run("eval", trained), "is damaged", "beside it there is last.safetensors")


def test_predict_writes_masks_and_overlays(run, trained, rng):
    Path("pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 17, 3), np.uint8)).save("pictures/one.png")
    code, out, error = run("predict", trained, "pictures")
    assert code == 0, error
    assert "1 of 1 images segmented" in out
    with Image.open(trained / "predictions" / "masks" / "one.png") as mask:
        assert (mask.mode, mask.size) == ("P", (17, 20))
    assert (trained / "predictions" / "overlays" / "one.png").exists()


def test_predict_reports_bad_files_at_the_end(run, trained, rng):
    Path("pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 17, 3), np.uint8)).save("pictures/one.png")
    Path("pictures/broken.png").write_bytes(Path("pictures/one.png").read_bytes()[:90])
    code, out, error = run("predict", trained, "pictures", "absent.jpg", "--out", "out", "--no-overlays")
    assert code == 1
    assert "1 of 3 images segmented" in out
    assert "broken.png: cannot be read as an image" in error
    assert "absent.jpg: no such file" in error
    assert Path("out/masks/one.png").exists()
    assert not Path("out/overlays").exists()


# ------------------------------------------------------------------------------------- data, doctor and bench


def test_data_check_counts_the_labels(run):
    code, out, _ = run("data", "check", "shapes", "--set", "length=5", "--set", "size=16,16")
    assert "background" in out
    assert code in (0, 1)  # 1 where a class is in none of the five pictures


def test_data_check_explains_masks_of_0_and_255(run):
    for folder in ("images", "masks"):
        Path("mine", folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"mine/images/{name}.png")
        Image.fromarray(np.array([[0, 255]], np.uint8).repeat(4, 1).repeat(8, 0)).save(f"mine/masks/{name}.png")
    Path("mine/classes.txt").write_text("back\nfront\n")
    code, out, error = run("data", "check", "--root", "mine", "--split", "all")
    assert code == 1, error
    assert "values = [0, 255]" in out
    code, out, _ = run("data", "check", "mine", "--split", "all", "--set", "values=0,255")
    assert code == 0
    assert "no problems found" in out


def test_data_show_draws_a_picture(run):
    assert run("data", "show", "shapes", "--count", 3, "--out", "shapes.png")[0] == 0
    with Image.open("shapes.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("command", ["check", "show"])
def test_data_sets_that_are_not_there(run, command):
    refused(run("data", command, "camvit"), "did you mean 'camvid'?")
    refused(run("data", command, "camvid"), "needs the folder of its images")
    refused(run("data", command, "camvid", "--root", "absent"), "there is no folder absent")
    refused(run("data", command, "shapes", "--set", "lenght=3"), "did you mean data.length?")


def test_doctor_reports_on_everything(run):
    code, out, _ = run("doctor")
    assert code == 0
    for subject in (
        "tinyseg",
        "Python",
        "packages",
        "processor",
        "BLAS",
        "Numba",
        "cache",
        "GPU",
        "memory",
        "disk",
    ):
        assert re.search(rf"^(ok|note) +{subject}", out, re.MULTILINE), subject


def test_bench_prints_medians(run, monkeypatch):
    monkeypatch.setattr("tinyseg.cli.bench.SIDE", 16)
    code, out, error = run("bench", "--seconds", "0.05", "--backend", "numpy")
    assert code == 0, error
    assert "conv2d" in out
    assert "training step" in out
    refused(run("bench", "--backend", "torch"), "--backend must be numba or numpy")
