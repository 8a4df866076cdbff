"""The two stages of the paper's recipe, with a tiny network and tiny pictures."""

import tinyseg
from benchmarks import camvid_paper
from tinyseg.train import config

TINY = (
    "data.name=shapes",
    "data.size=32,48",
    "data.train.length=2",
    "data.val.length=2",
    "augment.crop.size=32,32",
    "augment.flip.horizontal=0.5",
    "model.growth=1",
    "train.batch=2",
    "train.epochs=2",
    "train.pictures=1",
    "train.device=cpu",
)


def test_stages_follow_each_other_and_go_on(tmp_path):
    stages = camvid_paper.stages("unused", tmp_path, TINY)
    assert stages[0][1].optim.lr == 1e-3 and "crop" in stages[0][1].augment
    assert stages[1][1].optim.lr == 1e-4 and "crop" not in stages[1][1].augment
    with tinyseg.use("numpy"):
        assert not camvid_paper.run_stages(stages, until=0)  # which is over: nothing but one step
        interrupted = camvid_paper.measure(stages, "val")
        assert interrupted["epochs"] == [0]
        assert camvid_paper.run_stages(stages)
        row = camvid_paper.measure(stages, "val")
    assert row["epochs"] == [2, 2]
    assert 0 <= row["mean_iou"] <= 1
    assert row["mean_iou"] != interrupted["mean_iou"]
    assert row["paper_mean_iou"] == 0.589


def test_the_recipe_is_that_of_the_paper(tmp_path):
    first, second = (chosen for _, chosen in camvid_paper.stages("CamVid", tmp_path, []))
    assert first.model.name == second.model.name == "fc_densenet56"
    assert (first.optim.name, first.train.batch, first.train.patience) == ("rmsprop", 3, 100)
    assert first.augment["crop"]["size"] == (224, 224)
    assert config.from_tables(config.to_tables(second)) == second
    assert second.train.init == str(tmp_path / "fc_densenet56")
