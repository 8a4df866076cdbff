"""From a configuration to the objects that it describes: data sets, loader, network, optimiser."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyseg import cuda, data, models, optim
from tinyseg.data import Dataset, Loader, transforms
from tinyseg.models import SegmentationNetwork
from tinyseg.models.network import LearningRates
from tinyseg.optim import Optimiser, schedules
from tinyseg.train import settings
from tinyseg.train.config import Config
from tinyseg.train.errors import SettingError
from tinyseg.train.loss import PixelLoss
from tinyseg.train.step import Steps


def open_dataset(config: Config, part: str, split: str | None = None) -> Dataset:
    """The images to train on (part "train") or to validate on ("val"), or another split with the part's options.

    Raises `DataError` if files are missing or wrong.
    """
    own: Mapping[str, Any] = getattr(config.data, part)
    options = {**config.data.options, **own}
    of_config = options.pop("split", part)
    return data.open_dataset(config.data.name, config.data.root, split or of_config, **options)


def training_loader(
    config: Config, dataset: Dataset, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Loader:
    """Shuffled batches of augmented, normalised images.

    mean, std  of the normalisation, by default the data's own
    """
    normalise = {"mean": tuple(mean or dataset.mean), "std": tuple(std or dataset.std)}
    tables = [{"name": name, **options} for name, options in config.augment.items()]
    try:
        transform = transforms.build([*tables, {"name": "normalise", **normalise}], dataset)
    except (ValueError, TypeError) as error:
        raise SettingError(f"augment: {error}") from error
    return Loader(
        dataset,
        config.train.batch,
        transform=transform,
        shuffle=True,
        seed=config.train.seed,
        drop_last=len(dataset) >= config.train.batch,
        prefetch=config.train.prefetch,
    )


def network(
    config: Config,
    channels: int,
    classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> SegmentationNetwork:
    """The network with its first weights, which follow from train.seed.

    mean, std  of the images' normalisation, for a network that looks at the image before it
    """
    rng = np.random.default_rng(config.train.seed)
    seen = settings.of_callable(models.MODELS[config.model.name])
    normalisation = {name: value for name, value in (("mean", mean), ("std", std)) if name in seen and value}
    options = {**normalisation, **config.model.options}
    try:
        return models.create(config.model.name, channels, classes, rng=rng, **options)
    except (ValueError, TypeError) as error:
        raise SettingError(f"model: {error}") from error


def optimiser(config: Config, net: SegmentationNetwork, steps_per_epoch: int) -> Optimiser:
    """The optimiser with its schedule. Weight decay acts on weights; biases and normalisation are left free."""
    settings = config.optim
    groups = [
        {
            "params": group.parameters,
            "lr_multiplier": group.lr_multiplier,
            "weight_decay": settings.weight_decay if group.decays else 0.0,
        }
        for group in net.parameter_groups(learning_rates(config, net))
    ]
    common = {"lr": settings.lr, "schedule": schedule(config, steps_per_epoch)}
    try:
        if settings.name == "sgd":
            return optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)
        if settings.name == "rmsprop":
            return optim.RMSprop(groups, momentum=settings.momentum, **common)
        return {"adam": optim.Adam, "adamw": optim.AdamW}[settings.name](groups, betas=settings.betas, **common)
    except ValueError as error:
        raise SettingError(f"optim: {error}") from error


def steps(config: Config, net: SegmentationNetwork, optimiser: Optimiser, loss: PixelLoss) -> Steps:
    """What takes the steps, with the network where it is to be trained."""
    settings = config.train
    if settings.device == "cpu" and (settings.cuda_graph or settings.precision != "float32"):
        raise SettingError(
            "train.cuda_graph and train.precision are for training on a GPU: add --device cuda, or for the CPU "
            "--set train.cuda_graph=false --set train.precision=float32"
        )
    if settings.cuda_graph and settings.accumulate > 1:
        raise SettingError(
            f"train.cuda_graph records steps of one batch, and train.accumulate is {settings.accumulate}; take "
            "larger batches instead"
        )
    mixed = settings.precision == "bfloat16"
    if mixed:
        try:
            cuda.bfloat16()
        except ModuleNotFoundError as error:
            raise SettingError(f"train.precision: {error}") from error
    return Steps(net, optimiser, loss, clip=config.optim.clip, record=settings.cuda_graph, mixed=mixed)


def learning_rates(config: Config, net: SegmentationNetwork) -> LearningRates:
    """The factors for the learning rate that the configuration asks for."""
    head, bias = config.optim.head_lr, config.optim.bias_lr
    if not isinstance(head, str) and head != 1 and not net.head_parts():
        raise SettingError(
            f"optim.head_lr: {config.model.name} is not built on a trunk, all of it learns alike; leave it at 1"
        )
    return LearningRates(
        head=net.paper_rates.head if isinstance(head, str) else head,
        bias=net.paper_rates.bias if isinstance(bias, str) else bias,
    )


def schedule(config: Config, steps_per_epoch: int) -> schedules.Schedule:
    """The factor of the learning rate as a function of the step; the configuration counts in epochs."""
    settings = config.schedule
    total = config.train.epochs * steps_per_epoch
    every = max(round(settings.every * steps_per_epoch), 1)
    course = {
        "constant": lambda: schedules.constant(),
        "poly": lambda: schedules.poly(total, settings.power),
        "step": lambda: schedules.step(every, settings.gamma),
        "exponential": lambda: schedules.exponential(settings.gamma, every),
        "cosine": lambda: schedules.cosine(total, settings.floor),
    }[settings.name]()
    rising = round(settings.warm_up * steps_per_epoch)
    return schedules.product(schedules.warm_up(rising), course) if rising > 0 else course
