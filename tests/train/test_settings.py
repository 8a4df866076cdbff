"""Single settings: kinds, texts, ranges, and the nearest known name."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import pytest

from tinyseg.train import settings
from tinyseg.train.errors import SettingError
from tinyseg.train.settings import REQUIRED, Entry


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "12", 12),
        (int, " -3 ", -3),
        (float, "0.5", 0.5),
        (float, "1e-3", 1e-3),
        (float, "3", 3.0),
        (bool, "true", True),
        (bool, "False", False),
        (str, "camvid", "camvid"),
        (str, "123", "123"),
        (str, "a,b", "a,b"),
        (str, '"in quotes"', "in quotes"),
        (str | None, "none", None),
        (int | None, "7", 7),
        (int | None, "None", None),
        (Literal["sgd", "adam"], "adam", "adam"),
        (tuple[int, int], "3,4", (3, 4)),
        (tuple[int, int], "[3, 4]", (3, 4)),
        (tuple[int, int], "(3, 4)", (3, 4)),
        (tuple[int, int], "5", (5, 5)),
        (tuple[float, float], "0, 1", (0.0, 1.0)),
        (tuple[float, ...], "1, 2.5, 3", (1.0, 2.5, 3.0)),
        (tuple[str, ...] | None, "cat, dog", ("cat", "dog")),
        (Sequence[int], "1,2", (1, 2)),
        (Sequence[str] | str | None, "cat,dog", ("cat", "dog")),
        (Sequence[str] | str | None, "names.txt", "names.txt"),
        (Literal["median"] | tuple[float, ...] | None, "median", "median"),
        (Literal["median"] | tuple[float, ...] | None, "1,2", (1.0, 2.0)),
    ],
)
def test_a_text_becomes_a_value(kind, text, value):
    parsed = settings.parse("section.key", text, Entry(kind))
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "1.5", "section.key must be a whole number, got '1.5'"),
        (int, "true", "must be a whole number"),
        (int, "fast", "must be a whole number, got 'fast'"),
        (float, "fast", "must be a number, got 'fast'"),
        (bool, "1", "must be true or false"),
        (int | None, "x", "must be a whole number, or none, got 'x'"),
        (Literal["sgd", "adam", "adamw"], "adma", "must be sgd, adam or adamw, got 'adma'; did you mean 'adam'?"),
        (tuple[int, int], "1,2,3", "must be 2 whole numbers, or one for both"),
        (tuple[float, ...], "", "must be a list of numbers"),
        (float, "nan", "must be a finite number, got nan"),
        (float, "inf", "must be a finite number, got inf"),
    ],
)
def test_a_wrong_text_is_explained(kind, text, message):
    with pytest.raises(SettingError) as error:
        settings.parse("section.key", text, Entry(kind))
    assert message in str(error.value)


def test_ranges_are_explained_and_hold_for_every_number_of_a_list():
    entry = Entry(float, minimum=0, below=1)
    assert settings.check("optim.momentum", 0, entry) == 0.0
    with pytest.raises(SettingError, match=r"optim.momentum must be at least 0 and less than 1, got 1$"):
        settings.check("optim.momentum", 1.0, entry)
    with pytest.raises(SettingError, match="more than 0, got 0"):
        settings.check("optim.lr", 0, Entry(float, above=0))
    with pytest.raises(SettingError, match="at most 3, got 4"):
        settings.check("x", (1.0, 4.0), Entry(tuple[float, ...], maximum=3))


def test_a_toml_value_of_another_type_is_refused():
    for value in (True, "3", 3.0):
        with pytest.raises(SettingError, match=r"train.batch \(in mine.toml\) must be a whole number"):
            settings.check("train.batch", value, Entry(int), "mine.toml")


KNOWN = ("optim.name", "optim.lr", "optim.weight_decay", "train.epochs", "train.batch", "data.train.length")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.weight_deacy", "optim.weight_decay"),
        ("optim.learning_rate", "optim.lr"),  # its initials
        ("optim.wd", "optim.weight_decay"),
        ("train.lr", "optim.lr"),  # another section
        ("lr", "optim.lr"),
        ("optimiser.lr", "optim.lr"),
        ("train.batch_size", "train.batch"),
        ("data.train", "data.train.length"),  # a section
        ("epoch", "train.epochs"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, nearest):
    assert f"unknown setting {key}: did you mean {nearest}?" in str(settings.unknown(key, KNOWN))


def test_the_arguments_of_a_class_are_settings():
    class Network:
        def __init__(self, classes: int, *, base: int = 64, variant: str = "paper", rng=None):
            pass

    found = settings.of_callable(partial(Network, variant="padded"), without=("rng",))
    assert found == {
        "classes": Entry(int, REQUIRED),
        "base": Entry(int, 64),
        "variant": Entry(str, "padded"),
    }
