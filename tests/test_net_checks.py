"""A recipe whose nets cannot be built or used is refused before any data are read, in one line that says which net."""

from dataclasses import replace

import pytest
import torch

from osteograde import cli
from osteograde.errors import UserError
from osteograde.learning import net_checks, settings
from osteograde.learning.recipes import RECIPES

KNEES = RECIPES["knee-xray"]()
SPIDER = RECIPES["spider-unet"]()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_nets_of_every_recipe_that_ships_can_be_built_and_read_their_images(name):
    net_checks.check(RECIPES[name]())


WRONG = [
    (KNEES, "grade.kl.start.frozen=WRONG", r"grader 'kl': start.frozen: the trunk has no part 'WRONG'; nearest: conv"),
    (KNEES, "grade.kl.start.frozen=conv_stemm", r"no part 'conv_stemm'; nearest: conv_stem"),
    (KNEES, "grade.kl.net.backbone=resnet9999", r"grader 'kl': backbone 'resnet9999' is not in timm .*close: resnet"),
    (KNEES, "grade.kl.net.backbone=torchvision/nope", r"'torchvision/nope' is not in torchvision"),
    (KNEES, "grade.kl.net.width=-3", r"grader 'kl': no net can be built of kind=grader, backbone=.*width=-3.*negative"),
    (KNEES, "grade.kl.net.width=1000000000", r"parameters; expected at most 2000000000"),
    (KNEES, "grade.kl.net.pool=x", r"grader 'kl': pool is 'x'; expected 'attention'"),
    (KNEES, "grade.kl.net.normalise=x", r"normalise is 'x'; expected one of"),
    (KNEES, "locate.joint.net.encoder_name=nope", r"locator 'joint': backbone 'nope' is not in timm"),
    (KNEES, "locate.joint.net.stages=9", r"locator 'joint': no net can be built of .*stages=9"),
    (KNEES, "locate.joint.net.stages=-1", r"locator 'joint': no net can be built of .*stages=-1"),
    (KNEES, "locate.joint.net.stride=3", r"locator 'joint': stride of the map is 3; expected 1, 2, 4 or 8"),
    (KNEES, "locate.joint.pixels=101", r"cannot read images of pixels 101 \(images are \(101, 101\).*multiples of 2"),
    (KNEES, "locate.joint.training.epochs=0", r"locator 'joint': training.epochs 0 would keep random weights"),
    (RECIPES["knee-siamese"](), "grade.kl.pixels=32", r"grader 'kl', member 0: its net cannot read images of"),
    (SPIDER, "locate.disc.pixels=97", r"locator 'disc': its net cannot read images of pixels 97"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "setting", "told"), WRONG, ids=[setting for _, setting, _ in WRONG])
def test_a_net_that_cannot_be_built_or_read_its_images_is_refused_with_its_place(recipe, setting, told):
    starting = ["locate.joint.start.weights=none"] if "epochs=0" in setting else []
    with pytest.raises(UserError, match=told) as refused:
        net_checks.check(settings.changed(recipe, [setting, *starting]))
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 500


def test_what_meta_tensors_cannot_do_is_built_on_the_processor(monkeypatch):
    seen = []

    def build(config):
        device = torch.empty(0).device.type
        seen.append(device)
        if device == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return built(config)

    built = net_checks.build_net
    monkeypatch.setattr(net_checks, "build_net", build)
    net_checks.check(replace(KNEES, locators=KNEES.locators))
    assert seen == ["meta", "cpu"] * 2


@pytest.mark.parametrize("more", [[], ["--debug"], ["--plan"]])
def test_a_wrong_net_is_told_before_the_data_are_read(tmp_path, capsys, more):
    # The folder is empty, which reading would refuse first.
    words = ["knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "w"), "--set", "grade.kl.start.frozen=WRONG"]
    assert cli.run(lambda: cli.train(cli.train_parser().parse_args(words + more))) == 2
    told = capsys.readouterr().err
    assert "start.frozen: the trunk has no part 'WRONG'" in told and len(told.splitlines()) == 1
