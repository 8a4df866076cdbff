"""Everything that a training run can be told, with its default and its meaning.

    config = preset("isbi")                               # the file tinyseg/presets/isbi.toml
    config = read(Path("mine.toml"))                      # a file of your own; what it leaves out has its default
                                                          # or, with extends = "isbi" in it, that preset's value
    config = override(config, ["optim.lr=0.01"])          # as `tinyseg train --set optim.lr=0.01`

A configuration is immutable. The sections loss, optim, schedule, train and inference are listed here. The sections
data, model and augment name a data set, a network and transforms, and their other settings are the arguments of
these:

    [data]                          [model]                     [augment]
    name = "shapes"                 name = "unet"               flip = true
    size = [96, 96]                 width = 16                  crop = { size = [64, 64] }
    train = { length = 400 }        depth = 3
    val = { length = 60 }

`data.train` and `data.val` hold what differs between the two splits. Transforms run in the order of the file.

`to_toml` writes a configuration in full, so that a run folder's `config.toml` repeats the run. TOML has no word
for None: a setting whose default it is is left out, and for the others "none" stands for it.
"""

import difflib
import functools
import importlib.resources
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin

from tinyseg import data, models
from tinyseg.data import transforms
from tinyseg.models.inference import Options
from tinyseg.train import settings
from tinyseg.train.errors import SettingError
from tinyseg.train.settings import REQUIRED, Entry, setting

# ------------------------------------------------------------------------------------------------- the sections


@dataclass(frozen=True)
class Data:
    """The images to train and to validate on."""

    name: str = "shapes"  # one of data.DATASETS
    root: str | None = None  # the folder of the data set; shapes needs none
    options: Mapping[str, Any] = field(default_factory=dict)  # of the data set's class
    train: Mapping[str, Any] = field(default_factory=dict)  # the split to train on, and options for it alone
    val: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The network."""

    name: str = "unet"  # one of models.MODELS
    options: Mapping[str, Any] = field(default_factory=dict)  # of the network's class


@dataclass(frozen=True)
class Loss:
    """What is minimised: the cross-entropy of every pixel, and what may be added to it."""

    class_weights: Literal["median"] | tuple[float, ...] | None = setting(
        None,
        "a weight for each class, or median: the median of the classes' frequencies / the frequency",
        minimum=0,
    )
    dice: float = setting(0.0, "weight of the soft Dice loss that is added", minimum=0)


@dataclass(frozen=True)
class Optim:
    """How the weights are changed."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = setting("adamw", "the optimiser")
    lr: float = setting(1e-3, "learning rate, before the schedule", above=0)
    momentum: float = setting(0.9, "sgd and rmsprop: momentum", minimum=0, below=1)
    nesterov: bool = setting(False, "sgd: Nesterov's momentum")
    betas: tuple[float, float] = setting((0.9, 0.999), "adam and adamw: decay of the moments", minimum=0, below=1)
    weight_decay: float = setting(
        0.0, "pull of the weights towards zero; biases and normalisation are free", minimum=0
    )
    head_lr: Literal["paper"] | float = setting(
        1.0, "factor for the learning rate of what is behind the trunk, or paper: the network's own", above=0
    )
    bias_lr: Literal["paper"] | float = setting(
        1.0, "factor for the learning rate of biases, or paper: the network's own", above=0
    )
    clip: float | None = setting(None, "longest gradient (the norm over all parameters)", above=0)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes, step by step."""

    name: Literal["constant", "poly", "step", "exponential", "cosine"] = setting(
        "constant", "the course of the learning rate over the run"
    )
    warm_up: float = setting(0.0, "epochs in which the rate rises from zero", minimum=0)
    power: float = setting(0.9, "poly: (1 - progress) to this power", above=0)
    gamma: float = setting(0.1, "step and exponential: the factor at each drop", above=0)
    every: float = setting(10.0, "step and exponential: epochs between drops", above=0)
    floor: float = setting(0.0, "cosine: the last factor", minimum=0, maximum=1)


@dataclass(frozen=True)
class Train:
    """The loop."""

    epochs: int = setting(10, "how often the training images are seen", minimum=1)
    batch: int = setting(4, "images in a batch", minimum=1)
    accumulate: int = setting(1, "batches whose gradients are averaged for one step", minimum=1)
    seed: int = setting(0, "of the first weights, the order of the images, augmentation and dropout", minimum=0)
    init: str | None = setting(
        None, "weights to start from: a run folder, a checkpoint, or a file of PyTorch (also --init)"
    )
    freeze_norm: bool = setting(
        False, "batch normalisation with the statistics that are there, which are kept; for trained networks"
    )
    score: Literal["mean_iou", "pixel_accuracy"] = setting("mean_iou", "what decides which epoch is the best")
    patience: int | None = setting(None, "epochs without a better score after which the run ends", minimum=1)
    validate_every: int = setting(1, "epochs between validations", minimum=1)
    pictures: int = setting(4, "validation images in the contact sheet", minimum=1)
    prefetch: int = setting(4, "batches made ready in the background", minimum=0)
    device: Literal["cpu", "cuda"] = setting("cpu", "where the network is trained (also --device)")
    precision: Literal["float32", "tf32", "bfloat16"] = setting(
        "float32",
        "on a GPU: tf32 keeps three digits where convolutions multiply, bfloat16 also in activations",
    )
    cuda_graph: bool = setting(False, "on a GPU: record a step and start its kernels together (also --cuda-graph)")
    tensorboard: bool = setting(False, "also write TensorBoard events (needs tensorboardX)")


@dataclass(frozen=True)
class Inference:
    """How the network looks at an image in validation, and in eval and predict unless they are told otherwise."""

    scales: tuple[float, ...] = setting((1.0,), "sizes of the image, of which the answers are averaged", above=0)
    flip: bool = setting(False, "also the mirror image")

    def options(self) -> Options:
        """For `models.inference.predict_logits`."""
        return {"scales": self.scales, "flip": self.flip}


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    data: Data = Data()
    augment: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # transforms by name, with their settings
    model: Model = Model()
    loss: Loss = Loss()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    inference: Inference = Inference()


CLOSED = {"loss": Loss, "optim": Optim, "schedule": Schedule, "train": Train, "inference": Inference}
"""The sections whose settings are listed in this file."""

DEFAULT_NAMES = {"data": Data.name, "model": Model.name}

GIVEN = ("root", "split", "strict", "in_channels", "classes", "rng")
"""Arguments of data sets and networks that follow from elsewhere."""


# ------------------------------------------------------------------------------------------------ what there is


def entries(tables: Mapping[str, Any] | None = None) -> dict[str, Entry]:
    """Every setting that these tables may hold, by its dotted name: "optim.lr", "augment.crop.size"."""
    tables = tables or {}
    found = _data_entries(_name(tables, "data")) | _augment_entries() | _model_entries(_name(tables, "model"))
    for section, members in CLOSED.items():
        found |= {f"{section}.{name}": entry for name, entry in settings.of_section(members).items()}
    return found


def _name(tables: Mapping[str, Any], section: str) -> Any:
    table = tables.get(section, {})
    return table.get("name", DEFAULT_NAMES[section]) if isinstance(table, Mapping) else None


def _data_entries(name: Any) -> dict[str, Entry]:
    found = {
        "data.name": Entry(Literal[tuple(sorted(data.DATASETS))], Data.name, "the data set"),
        "data.root": Entry(str | None, None, "the folder of the data set (also --data)"),
        "data.train.split": Entry(str, "train", "the split to train on"),
        "data.val.split": Entry(str, "val", "the split to validate on"),
    }
    if name in data.DATASETS:
        for option, entry in settings.of_callable(data.DATASETS[name], without=GIVEN).items():
            found[f"data.{option}"] = entry
            found[f"data.train.{option}"] = Entry(entry.kind, None, "the same, for the split to train on alone")
            found[f"data.val.{option}"] = Entry(entry.kind, None, "the same, for the split to validate on alone")
    return found


@functools.cache
def _augment_entries() -> dict[str, Entry]:
    found = {}
    for name, transform in transforms.TRANSFORMS.items():
        if name == "normalise":  # always done, with the statistics of the data set
            continue
        found[f"augment.{name}"] = Entry(bool, False, str(transform.__doc__).partition("\n")[0])
        for option, entry in settings.of_callable(transform).items():
            found[f"augment.{name}.{option}"] = entry
    return found


def _model_entries(name: Any) -> dict[str, Entry]:
    found = {"model.name": Entry(Literal[tuple(sorted(models.MODELS))], Model.name, "the network")}
    if name in models.MODELS:
        for option, entry in settings.of_callable(models.MODELS[name], without=GIVEN).items():
            found[f"model.{option}"] = entry
    return found


# ------------------------------------------------------------------------------------------ to and from tables


def from_tables(tables: Mapping[str, Any], source: str = "") -> Config:
    """A configuration from nested tables, as a TOML file holds them. Raises `SettingError`."""
    _check_sections(tables, source)
    known = entries(tables)
    values = {}
    for key, value in flatten(tables):
        if key not in known:
            raise settings.unknown(key, known, source)
        values[key] = settings.check(key, value, known[key], source)
    chosen = [name for name, table in tables.get("augment", {}).items() if table is not False]
    for key, entry in known.items():
        of_transform = key.startswith("augment.")  # these know their defaults, some of them from the data set
        if key in values or (of_transform and key.split(".")[1] not in chosen):
            continue
        if entry.default is REQUIRED:
            raise SettingError(f"{key}{settings.in_source(source)} must be given: {settings.describe(entry.kind)}")
        if not of_transform:
            values[key] = entry.default

    def section(prefix: str, *apart: str) -> dict[str, Any]:
        """The settings one level below `prefix`, without those named."""
        below = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        return {key: value for key, value in below.items() if "." not in key and key not in apart}

    def options(prefix: str, *apart: str) -> dict[str, Any]:
        """The same, without those that are None by default."""
        below = section(prefix, *apart)
        return {k: v for k, v in below.items() if v is not None or known[prefix + k].default is not None}

    return Config(
        data=Data(
            name=values["data.name"],
            root=values["data.root"],
            options=options("data.", "name", "root"),
            train=options("data.train."),
            val=options("data.val."),
        ),
        augment={name: section(f"augment.{name}.") for name in chosen},
        model=Model(values["model.name"], options("model.", "name")),
        **{name: members(**section(f"{name}.")) for name, members in CLOSED.items()},
    )


def to_tables(config: Config) -> dict[str, Any]:
    """The configuration as nested tables, in full; None is left out. `from_tables` reads them."""
    part, closed = config.data, {section: _without_none(asdict(getattr(config, section))) for section in CLOSED}
    named = {"name": part.name} if part.root is None else {"name": part.name, "root": part.root}
    tables = {
        "data": {**named, **part.options, "train": part.train, "val": part.val},
        "augment": config.augment,
        "model": {"name": config.model.name, **config.model.options},
        **closed,
    }
    return _plain(tables)


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _plain(value: Any) -> Any:
    """Dicts and lists, as TOML and JSON know them, and "none" for None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "none" if value is None else value


def _check_sections(tables: Mapping[str, Any], source: str) -> None:
    known = ("data", "augment", "model", *CLOSED)
    for section, table in tables.items():
        if section not in known:
            raise settings.unknown(section, known, source)
        if not isinstance(table, Mapping):
            raise SettingError(f"{section} must be a section with settings, got {table!r}")


def flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested tables with their dotted names."""
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# ----------------------------------------------------------------------------------------- files and overrides


def presets() -> dict[str, str]:
    """The names of the presets, each with the comment in its file's first line."""
    folder = importlib.resources.files("tinyseg") / "presets"
    texts = {path.name.removesuffix(".toml"): path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return {name: texts[name].partition("\n")[0].lstrip("# ") for name in sorted(texts)}


def preset(name: str) -> Config:
    """A configuration that comes with the package: "shapes", "isbi", ..."""
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"there is no preset {name!r}{hint} There are: {', '.join(presets())}")
    path = importlib.resources.files("tinyseg") / "presets" / f"{name}.toml"
    return _from_toml(path.read_text(encoding="utf-8"), f"preset {name}")


def read(path: Path) -> Config:
    """A configuration from a TOML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not a text file in UTF-8") from error
    return _from_toml(text, str(path))


def _from_toml(text: str, source: str) -> Config:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source} is not valid TOML: {error}") from error
    base = tables.pop("extends", None)
    if base is None:
        return from_tables(tables, source)
    if not isinstance(base, str):
        raise SettingError(f"extends in {source} must be the name of a preset, got {base!r}")
    return from_tables(_merged(to_tables(preset(base)), tables), source)


def _merged(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with some values changed. Another data set or network drops the options of the old one."""
    merged = dict(tables)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = key in DEFAULT_NAMES and value.get("name", old["name"]) != old["name"]
            value = value if renamed else _merged(old, value)
        merged[key] = value
    return merged


def override(config: Config, assignments: Iterable[str]) -> Config:
    """The configuration with some settings changed, each written "section.key=value".

    With another data set or network, the options of the old one are dropped.
    """
    pairs = [_split(assignment) for assignment in assignments]
    tables = to_tables(config)
    for section in DEFAULT_NAMES:
        names = [text for key, text in pairs if key == f"{section}.name"]
        if names and names[-1] != tables[section]["name"]:
            tables[section] = {"name": names[-1]}
    known = entries(tables)
    for key, text in pairs:
        if key not in known:
            raise settings.unknown(key, known)
        _put(tables, key.split("."), settings.parse(key, text, known[key]))
    return from_tables(tables)


def _split(assignment: str) -> tuple[str, str]:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise SettingError(f"--set needs section.key=value, got {assignment!r}")
    return key.strip(), text.strip()


def _put(tables: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value in nested tables. True leaves a transform's settings, if it has some, as they are."""
    *sections, name = path
    for section in sections:
        inner = tables.get(section)
        tables[section] = tables = inner if isinstance(inner, dict) else {}
    if value is not True or not isinstance(tables.get(name), dict):
        tables[name] = "none" if value is None else value


# ----------------------------------------------------------------------------------------------- written as TOML


def to_toml(config: Config) -> str:
    """The configuration as a TOML file, in full, with the meaning of the settings as comments."""
    tables = to_tables(config)
    known = entries(tables)
    return "\n".join(line for section in tables for line in _section_lines(section, tables[section], known)) + "\n"


def _section_lines(name: str, table: Mapping[str, Any], known: Mapping[str, Entry]) -> Iterator[str]:
    """A section: its settings, those that are none as comments, then the sections below it."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = {key: f"{key} = {_toml_value(value)}" for key, value in values.items()}
    if name in CLOSED:
        unset = (key for key in settings.of_section(CLOSED[name]) if key not in table)
        lines |= {key: f"# {key} = none" for key in unset}
    width = max(map(len, lines.values()), default=0)
    yield f"[{name}]"
    for key, line in lines.items():
        comment = _comment(known[f"{name}.{key}"])
        yield f"{line:<{width}}  # {comment}" if comment else line
    yield ""
    for key, below in table.items():
        if isinstance(below, Mapping):
            yield from _section_lines(f"{name}.{key}", below, known)


def _comment(entry: Entry) -> str:
    choices = settings.describe(entry.kind) if get_origin(entry.kind) is Literal else ""
    return ": ".join(part for part in (entry.help, choices) if part)


def _toml_value(value: Any) -> str:
    """A value on one line. (The library would give each element of a list a line of its own.)"""
    import tomli_w

    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")
