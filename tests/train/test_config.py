"""Configurations: presets, TOML files, overrides, and back to TOML without a loss."""

import dataclasses
import tomllib
import types
import typing

import pytest

from tinyseg.data import DATASETS
from tinyseg.train import config
from tinyseg.train.errors import SettingError


@pytest.mark.parametrize("name", config.presets())
def test_presets_are_valid_and_survive_toml(name):
    preset = config.preset(name)
    assert config.from_tables(tomllib.loads(config.to_toml(preset))) == preset


def test_presets_say_what_they_are():
    assert {"shapes", "isbi", "camvid"} <= set(config.presets())
    for name, line in config.presets().items():
        assert len(line) > 20, name


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(SettingError, match="no preset 'shape'; did you mean shapes"):
        config.preset("shape")


def test_a_file_may_extend_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "isbi"\n[augment]\nelastic = false\ncrop = { size = [64, 64] }\n[optim]\nlr = 0.5\n'
    )
    mine, isbi = config.read(path), config.preset("isbi")
    assert mine.optim == dataclasses.replace(isbi.optim, lr=0.5)
    assert mine.augment["crop"]["size"] == (64, 64)
    assert mine.augment["flip"] == isbi.augment["flip"]
    assert "elastic" in isbi.augment and "elastic" not in mine.augment
    assert mine.model == isbi.model


def test_a_file_that_extends_a_preset_with_another_network_drops_the_old_options(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "isbi"\n[model]\nname = "plain"\n')
    assert config.read(path).model.name == "plain"
    assert "base" not in config.read(path).model.options


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('extends = "isbo"', "no preset 'isbo'; did you mean isbi"),
        ("extends = 3", "must be the name of a preset, got 3"),
    ],
)
def test_a_file_can_extend_presets_only(tmp_path, line, message):
    path = tmp_path / "mine.toml"
    path.write_text(line)
    with pytest.raises(SettingError, match=message):
        config.read(path)


def test_overrides_reach_every_kind_of_section():
    changed = config.override(
        config.preset("shapes"),
        [
            "optim.lr=0.5",
            "model.base=3",
            "data.train.length=7",
            "data.noise=0.1",
            "augment.crop.size=32",
            "optim.clip=2",
        ],
    )
    assert changed.optim.lr == 0.5
    assert changed.model.options["base"] == 3
    assert changed.data.train["length"] == 7
    assert changed.data.options["noise"] == 0.1
    assert changed.augment["crop"] == {"size": (32, 32)}
    assert changed.optim.clip == 2.0
    assert config.override(changed, ["optim.clip=none"]).optim.clip is None


def test_transforms_are_switched_on_and_off_and_keep_their_order():
    base = config.Config(augment={"flip": {"vertical": 0.5}})
    changed = config.override(base, ["augment.rotate90=true", "augment.flip=true"])
    assert list(changed.augment.items()) == [("flip", {"vertical": 0.5}), ("rotate90", {})]
    assert list(config.override(changed, ["augment.flip=false"]).augment) == ["rotate90"]


def test_another_data_set_drops_the_options_of_the_old_one():
    changed = config.override(config.preset("shapes"), ["data.name=isbi", "data.invert=true"])
    assert changed.data.options["invert"] is True
    assert "noise" not in changed.data.options
    assert "length" not in changed.data.train


def test_none_is_kept_where_it_is_not_the_default():
    changed = config.override(config.Config(), ["data.name=folder", "data.ignore_label=none"])
    assert changed.data.options["ignore_label"] is None
    assert config.from_tables(tomllib.loads(config.to_toml(changed))) == changed


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lr", "--set needs section.key=value, got 'optim.lr'"),
        ("optim.learning_rate=1", "did you mean optim.lr?"),
        ("optm.lr=1", "did you mean optim.lr?"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'"),
        ("optim.lr=-1", "optim.lr must be more than 0, got -1"),
        ("train.epochs=2.5", "train.epochs must be a whole number"),
        ("optim.name=adma", "did you mean 'adam'?"),
        ("data.name=shaps", "did you mean 'shapes'?"),
        ("model.name=unett", "did you mean 'unet'?"),
        ("model.bas=8", "did you mean model.base?"),
        ("data.lenght=8", "did you mean data.length?"),
        ("augment.filp=true", "did you mean augment.flip?"),
        ("augment.crop.sise=8", "did you mean augment.crop.size?"),
        ("augment.crop=true", "augment.crop.size must be given"),
    ],
)
def test_wrong_overrides_are_explained(assignment, message):
    with pytest.raises(SettingError) as error:
        config.override(config.preset("shapes"), [assignment])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlr = ", "is not valid TOML"),
        (
            "[optim]\nlearning_rate = 1",
            r"unknown setting optim.learning_rate \(in .*mine.toml\): did you mean optim.lr",
        ),
        ("[optimm]\nlr = 1", "unknown setting optimm .*did you mean optim"),
        ("optim = 3", "optim must be a section"),
        ("[train]\nbatch = '4'", "train.batch .* must be a whole number, got '4'"),
    ],
)
def test_wrong_files_are_explained_with_their_name(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=message):
        config.read(path)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(SettingError, match=r"cannot read the configuration .*absent.toml: No such file"):
        config.read(tmp_path / "absent.toml")


def test_a_file_may_start_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[optim]\r\nlr = 0.25\r\n")
    assert config.read(path).optim.lr == 0.25


@pytest.mark.parametrize("section", config.CLOSED.values())
def test_a_setting_of_ours_that_may_be_none_has_it_as_default(section):
    """TOML has no None: what is left out of a file must come back as None."""
    for name, kind in typing.get_type_hints(section).items():
        if types.NoneType in typing.get_args(kind):
            default = next(field.default for field in dataclasses.fields(section) if field.name == name)
            assert default is None, name


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_can_be_configured(name):
    found = config.entries({"data": {"name": name}})
    assert {"data.name", "data.root", "data.train.split", "data.val.split"} < set(found)


def test_every_setting_of_ours_has_a_meaning():
    for key, entry in config.entries().items():
        if key.partition(".")[0] in config.CLOSED:
            assert entry.help, key
