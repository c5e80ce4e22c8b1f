"""Every network against the reference: names and shapes, start values, outputs."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from tests.helpers.conformance import (
    CONFORMANCE,
    DETECTION_HEADS,
    architectures,
    bn_statistics,
    error_in_std,
    formula_input,
    load_formula_weights,
    needs_conformance,
    reference_architectures,
    sweep,
)
from torch import nn
from torchvision.models import resnet152

from centernet.errors import UserError
from centernet.models import create_model, describe, load_model, save_model
from centernet.models.deform_conv import DCN
from centernet.models.weights import fit_state_dict

TASK_HEADS = {
    "ctdet coco": {"hm": 80, "wh": 2, "reg": 2},
    "ctdet pascal": DETECTION_HEADS,
    "multi_pose": {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2},
    "ddd": {"hm": 3, "dep": 1, "rot": 8, "dim": 3, "wh": 2, "reg": 2},
    "exdet": {f"hm_{p}": 80 for p in "tlbrc"} | {f"reg_{p}": 2 for p in "tlbr"},
}

# The reference's state dicts: entries, scalars in parameters, and the start of the SHA-256 of the lines
# "<name> <shape>\n" in registration order. Those of dla hold the ImageNet classifier base.fc.
CHECK_SUMS = [
    ("res_18", "ctdet coco", 150, 15820372, "50fef281b17c68fe"),
    ("res_101", "ctdet coco", 654, 53435476, "1727d0bdadb4b699"),
    ("resdcn_18", "ctdet coco", 177, 14437349, "c6167c607b73398d"),
    ("resdcn_18", "ctdet pascal", 177, 14433449, "3e8fb4b963513761"),
    ("resdcn_101", "ctdet coco", 681, 49673189, "78de546b13007e40"),
    ("resdcn_101", "ctdet pascal", 681, 49669289, "fb7080aadaaf3a4c"),
    ("dla_34", "ctdet coco", 400, 20188892, "f6d6f08c0310d3fb"),
    ("dla_34", "ctdet pascal", 400, 20173472, "872a3c70fe5e7f36"),
    ("dla_34", "multi_pose", 412, 20625346, "f837102b16818cd6"),
    ("dla_34", "ddd", 412, 20615323, "b1a485e79ae5aa65"),
    ("dla_34", "exdet", 424, 21158432, "c038688c1d0b1dbe"),
    ("dlav0_34", "ctdet coco", 326, 18474476, "d2920edb3b4432a4"),
    ("hourglass", "ctdet coco", 984, 191284008, "a15fc3673e108c4d"),
    ("hourglass", "multi_pose", 1008, 194811124, "704f44b93dca985d"),
    ("hourglass", "exdet", 1032, 198531504, "a592c0195dff2df1"),
]

# Without the heads: entries, and the same sum. Those of depth 152, which no listing has, are of this code;
# test_depth_152 explains why they are correct. The classifier base.fc of dla_34 is not among them.
BODIES = {
    "res_18": (138, "5070c132ddce9fb5"),
    "res_34": (234, "f50cf4a61c4e6c6e"),
    "res_50": (336, "d376c4f141036dea"),
    "res_101": (642, "22cf8403cd2b3a32"),
    "res_152": (948, "5960f322c0eef148"),
    "resdcn_18": (165, "bc4ec096c82b8bdb"),
    "resdcn_34": (261, "0f4169666673f8e0"),
    "resdcn_50": (363, "2516b2c39e0403c2"),
    "resdcn_101": (669, "b67147316517b189"),
    "resdcn_152": (975, "be999f672316edd2"),
    "dla_34": (386, "1d7e54e9c672c347"),
    "dlav0_34": (314, "38e2e8dd1029e0e3"),
    "hourglass": (960, "4fabd4d133184f50"),
}

# Outputs with formula weights in float64, by head and stack: mean, standard deviation, and the first, the middle and
# the last value. They come from this code when it agreed with the reference on all files of ../shared/conformance.
INPUT_PARAMS = (0.0751, 0.0741, 1.657, 1.28, 0.171, 0.235, 0.44, 679111611)
OUTPUTS = {
    "res_18": {
        "hm": [[-2.21416839402, 0.246125603731, -2.02764011473, -2.04586826542, -2.27346002355]],
        "wh": [[-0.077306546228, 0.191625153515, -0.0597837138924, 0.0066577592862, 0.116381456741]],
        "reg": [[0.0783903816671, 0.174735072975, -0.140693893362, -0.160306256785, 0.0413682854125]],
    },
    "resdcn_18": {
        "hm": [[-2.1584255501, 0.240158673851, -1.93458525921, -1.94376195103, -2.46255318954]],
        "wh": [[-0.193953110747, 0.202977002255, 0.0170513185348, 0.0321514489402, -0.455309741013]],
        "reg": [[0.0165380929462, 0.208876302639, 0.00222665306287, -0.0346327010178, 0.0958214052007]],
    },
    "dla_34": {
        "hm": [[-2.1321093393, 0.257915432668, -2.02868328727, -2.03494785877, -2.22113442279]],
        "wh": [[0.176090457359, 0.174527127212, 0.162280142249, 0.180498677159, 0.0470516761415]],
        "reg": [[-0.0664931490841, 0.20144898266, -0.00846438458547, 0.0607873899364, -0.208613678867]],
    },
    "dlav0_34": {
        "hm": [[-2.17420282425, 0.245585568298, -2.08466270536, -1.97869447739, -2.10343171933]],
        "wh": [[-0.0884784891428, 0.173237893979, -0.000171764001116, -0.0519959727079, 0.0616409841738]],
        "reg": [[-0.0521153810044, 0.176582241361, -0.0719050623676, -0.104266414421, -0.00643684349815]],
    },
    "hourglass": {
        "hm": [
            [-2.23118377472, 0.630271483864, -2.15454506788, -2.34360972893, -1.81276784732],
            [-1.77986238268, 1.86767868514, -2.52658405564, -2.81122566587, -2.52242760542],
        ],
        "wh": [
            [-0.653505591429, 0.386708532212, -0.226890355068, -0.076647418446, -0.309002276262],
            [0.235576472305, 2.24513886713, -0.489280831963, 0.118879309542, -0.665661320417],
        ],
        "reg": [
            [-0.268214697154, 0.382557712601, -0.138176746456, 0.0240287913269, 0.0381730127239],
            [-2.41010878477, 0.967167050776, -0.486157353847, -0.335875786933, -1.03642822062],
        ],
    },
}

DEEP = ("_50", "_101", "_152")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(arch: str, heads: dict[str, int] = DETECTION_HEADS, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(arch, heads, describe(arch)[0].head_conv)


def build_without_memory(arch: str, heads: dict[str, int] = DETECTION_HEADS) -> nn.Module:
    with torch.device("meta"):
        return build(arch, heads)


def entries(model: nn.Module) -> list[tuple[str, list[int]]]:
    return [(name, list(value.shape)) for name, value in model.state_dict().items()]


# Names, shapes, order


@pytest.mark.parametrize(("arch", "task", "count", "scalars", "digest"), CHECK_SUMS)
def test_state_dict_is_the_reference_s(arch, task, count, scalars, digest):
    model = build_without_memory(arch, TASK_HEADS[task])
    rows = entries(model)
    own_scalars = sum(p.numel() for p in model.parameters())
    if arch == "dla_34":
        place = max(i for i, (name, _) in enumerate(rows) if name.startswith("base.")) + 1
        rows[place:place] = [("base.fc.weight", [1000, 512, 1, 1]), ("base.fc.bias", [1000])]
        own_scalars += 513000
    assert own_scalars == scalars
    assert check_sum(rows) == (count, digest)


def check_sum(rows: list[tuple[str, list[int]]]) -> tuple[int, str]:
    text = "".join(f"{name} {shape}\n" for name, shape in rows)
    return len(rows), hashlib.sha256(text.encode()).hexdigest()[:16]


def head_entries(arch: str, heads: dict[str, int]) -> list[tuple[str, list[int]]]:
    """Names and shapes of all heads, in the order of registration."""
    family, rows = arch.partition("_")[0], []
    inputs, width = {"res": (256, 64), "resdcn": (64, 64), "hourglass": (256, 256)}.get(family, (64, 256))
    for name in sorted(heads) if family == "res" else heads:
        for place in [""] if family != "hourglass" else ["0.", "1."]:
            first, last = ("0.conv", "1") if family == "hourglass" else ("0", "2")
            for layer, shape in ((first, [width, inputs, 3, 3]), (last, [heads[name], width, 1, 1])):
                prefix = f"{name}.{place}{layer}"
                rows += [(f"{prefix}.weight", shape), (f"{prefix}.bias", shape[:1])]
    return rows


@pytest.mark.parametrize("task", TASK_HEADS)
@pytest.mark.parametrize("arch", reference_architectures())
def test_names_and_shapes_for_every_task(arch, task):
    rows = entries(build_without_memory(arch, TASK_HEADS[task]))
    body = [row for row in rows if row[0].partition(".")[0] not in TASK_HEADS[task]]
    assert check_sum(body) == BODIES[arch]
    assert rows == body + head_entries(arch, TASK_HEADS[task])


@pytest.mark.parametrize("family", ["res", "resdcn"])
def test_depth_152(family):
    """The backbone is torchvision's, and the neck that of depth 101, whose listing is the reference's."""
    with torch.device("meta"):
        backbone = [row for row in entries(resnet152()) if not row[0].startswith("fc.")]
    rows = entries(build_without_memory(f"{family}_152"))
    assert [row for row in rows if row[0].startswith(("conv1.", "bn1.", "layer"))] == backbone
    necks = [
        [row for row in entries(build_without_memory(f"{family}_{depth}")) if row[0].startswith("deconv_layers.")]
        for depth in (101, 152)
    ]
    assert necks[0] == necks[1] and necks[0]


@pytest.mark.parametrize("arch", sweep(architectures(), slow=(*DEEP, "hourglass")))
def test_a_checkpoint_gives_the_same_outputs(tmp_path, arch):
    heads = TASK_HEADS["multi_pose"]
    model = build(arch, heads).eval()
    for name, value in model.state_dict().items():  # also what starts as zeros or ones
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.add_(0.01 * torch.randn_like(value))
    save_model(tmp_path / "model.pth", 1, model)
    fresh = load_model(build(arch, heads, seed=1), tmp_path / "model.pth", log=lambda _: None).eval()
    side = describe(arch)[0].pad + 1
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        for output, expected in zip(fresh(x), model(x), strict=True):
            assert list(output) == list(heads)
            assert all(torch.equal(output[name], value) for name, value in expected.items())


@needs_conformance
@pytest.mark.parametrize("path", sorted(CONFORMANCE.glob("state_dicts/*.json")), ids=lambda path: path.stem)
def test_state_dict_listing(path):
    listing = json.loads(path.read_text())
    assert describe(listing["arch"])[0].head_conv == listing["head_conv"]
    model = build_without_memory(listing["arch"], dict(listing["heads"]))
    assert entries(model) == [tuple(row) for row in listing["state_dict"]]
    parameters = list(model.parameters())
    assert len(parameters) == listing["num_parameter_tensors"]
    assert sum(p.numel() for p in parameters) == listing["num_parameters"]


def test_the_unused_classifier_of_dla_files_is_no_news():
    model = build("dla_34")
    file = model.state_dict() | {"base.fc.weight": torch.zeros(1000, 512, 1, 1), "base.fc.bias": torch.zeros(1000)}
    lines = []
    fit_state_dict(model, file, "file", log=lines.append)
    assert lines == []


@pytest.mark.parametrize("arch", ["dla", "dla_60", "dlav0_46", "hourglass_34", "resdcn", "vgg_16"])
def test_unknown_network(arch):
    with pytest.raises(UserError, match=r"--arch .*hourglass"):
        describe(arch)


# Outputs


@pytest.mark.parametrize("arch", architectures())
@pytest.mark.parametrize("task", [task for task in TASK_HEADS if task != "ctdet pascal"])
def test_outputs_are_raw_maps_at_stride_4(arch, task):
    family, _ = describe(arch)
    model = build_without_memory(arch, TASK_HEADS[task])
    height, width = family.pad + 1, 2 * (family.pad + 1)
    outputs = model(torch.empty(2, 3, height, width, device="meta"))
    assert len(outputs) == family.num_stacks
    for output in outputs:
        shapes = {name: tuple(value.shape) for name, value in output.items()}
        assert list(shapes.items()) == [(n, (2, c, height // 4, width // 4)) for n, c in TASK_HEADS[task].items()]


@pytest.mark.parametrize("arch", [arch for arch in architectures() if arch != "hourglass"])
def test_heads_of_one_convolution(arch):
    with torch.device("meta"):
        model = create_model(arch, DETECTION_HEADS, head_conv=0)
    names = [name for name, _ in entries(model) if name.startswith("wh.")]
    assert names == ["wh.weight", "wh.bias"]
    assert model(torch.empty(1, 3, 64, 64, device="meta"))[0]["wh"].shape == (1, 2, 16, 16)


def formula_outputs(arch: str) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    model = load_formula_weights(build(arch).double()).train()
    shape = (2, 3, 64, 96)
    if arch == "hourglass":
        # Batch statistics of its innermost maps, one pixel each, would blow up rounding errors.
        shape = (1, 3, 128, 128)
        for _, variance in bn_statistics(model.eval(), "running_var"):
            variance.fill_(2)
    with torch.no_grad():
        return model, model(formula_input(shape, INPUT_PARAMS).double())


def summary_values(value: torch.Tensor) -> list[float]:
    flat = value.flatten()
    chosen = (flat.mean(), flat.std(unbiased=False), flat[0], flat[len(flat) // 2], flat[-1])
    return [float(x) for x in chosen]


@pytest.mark.parametrize("arch", OUTPUTS)
def test_outputs_with_formula_weights(arch):
    model, outputs = formula_outputs(arch)
    for stack, output in enumerate(outputs):
        for name, value in output.items():
            expected = OUTPUTS[arch][name][stack]
            assert summary_values(value) == pytest.approx(expected, rel=0, abs=1e-7 * expected[1]), (stack, name)
    # Also the shortcuts that nothing reads see the batch.
    seen = [value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(value == model.training for value in seen)


def test_every_family_has_golden_values():
    assert {arch.partition("_")[0] for arch in OUTPUTS} == {
        arch.partition("_")[0] for arch in reference_architectures()
    }


def forward_files(pattern: str) -> list:
    names = sorted(path.stem for path in CONFORMANCE.glob(f"forward/{pattern}.npz") if "dcn_layer" not in path.stem)
    return sweep([name for name in names if pattern == "train_*" or not name.startswith("train_")], slow=DEEP)


@needs_conformance
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("arch", forward_files("*"))
def test_evaluation_outputs(arch, dtype):
    file = np.load(CONFORMANCE / f"forward/{arch}.npz")
    model = load_formula_weights(build(arch).to(dtype), file["bn_running_mean"], file["bn_running_var"]).eval()
    with torch.no_grad():
        outputs = model(formula_input(file["input_shape"], file["input_params"]).to(dtype))
    check_outputs(outputs, file, dtype)
    assert len(outputs) == file["num_stacks"]


@needs_conformance
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", forward_files("train_*"))
def test_training_outputs_and_running_statistics(name, dtype):
    file = np.load(CONFORMANCE / f"forward/{name}.npz")
    model = load_formula_weights(build(name.removeprefix("train_")).to(dtype)).train()
    with torch.no_grad():
        outputs = model(formula_input(file["input_shape"], file["input_params"]).to(dtype))
    check_outputs(outputs, file, dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for which in ("running_mean", "running_var"):
        own = torch.cat([value for _, value in bn_statistics(model, which)]).numpy()
        np.testing.assert_allclose(own, file[f"bn_{which}_after_f64"], rtol=tolerance, atol=tolerance)


def check_outputs(outputs, file, dtype):
    tolerance = 1e-8 if dtype == torch.float64 else 20 * float(file["float64_rel_diff"]) + 1e-5
    for stack, output in enumerate(outputs):
        for name, value in output.items():
            assert error_in_std(value, file[f"out{stack}_{name}_f64"]) <= tolerance, (stack, name)


@pytest.mark.parametrize("arch", sweep(["res_18", "resdcn_18", "dlav0_34", "dla_34", "hourglass"], ("_34", "glass")))
def test_compiles_without_a_break(arch):
    torch._dynamo.reset()
    model = build(arch)
    side = describe(arch)[0].pad + 1
    x = torch.randn(2, 3, side, side)
    for training in (False, True):
        model.train(training)
        expected = model(x)
        outputs = torch.compile(model, fullgraph=True, backend="eager")(x)
        for output, values in zip(outputs, expected, strict=True):
            assert all(torch.equal(output[name], value) for name, value in values.items())


# Training


@pytest.mark.parametrize("arch", sweep(architectures(), slow=DEEP))
def test_every_parameter_is_trained_but_the_unused(arch):
    model = build(arch).train()
    size = describe(arch)[0].pad + 1
    outputs = model(torch.randn(2, 3, size, size))
    sum(value.square().mean() for output in outputs for value in output.values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert sorted(without) == sorted(getattr(model, "unused_parameters", ()))


# Start values

BILINEAR = {
    4: [0.25, 0.75, 0.75, 0.25],
    8: [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125],
}


def heads_of(model: nn.Module) -> list[tuple[str, nn.Conv2d, nn.Conv2d]]:
    """(head, its 3x3 convolution, its 1x1 convolution), for every stack."""
    found = []
    for name in model.heads:
        head = getattr(model, name)
        for stack in head if isinstance(head, nn.ModuleList) else [head]:
            first, last = (module for module in stack.modules() if isinstance(module, nn.Conv2d))
            found.append((name, first, last))
    return found


@pytest.mark.parametrize("arch", sweep(reference_architectures(), slow=DEEP))
def test_start_of_heads(arch):
    family = arch.partition("_")[0]
    for name, first, last in heads_of(build(arch, TASK_HEADS["multi_pose"])):
        if "hm" in name:
            assert torch.all(last.bias == -2.19), name
        elif family != "hourglass":
            assert torch.all(last.bias == 0), name
            assert torch.all(first.bias == 0) == (family != "res"), name
        small = {"res": [last], "resdcn": [first, last], "dlav0": [first, last]}.get(family, [])
        for conv in (first, last):
            bound = 1 / math.sqrt(conv.weight[0].numel())
            drawn_small = "hm" not in name and any(conv is other for other in small)
            assert (float(conv.weight.detach().abs().max()) < 0.006) == drawn_small, name
            assert drawn_small or is_uniform(conv.weight, bound), name


@pytest.mark.parametrize("arch", sweep(architectures(), slow=DEEP))
def test_start_of_necks_and_batch_norms(arch):
    model = build(arch)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1), name
            assert torch.all(module.bias == 0), name
        elif isinstance(module, DCN):
            assert not torch.any(module.conv_offset_mask.weight), name
            assert not torch.any(module.conv_offset_mask.bias), name
            assert not torch.any(module.bias), name
            assert is_uniform(module.weight, 1 / math.sqrt(module.weight[0].numel())), name
        elif isinstance(module, nn.ConvTranspose2d):
            weight = module.weight.detach()
            if arch.startswith("res_"):
                assert is_normal(weight, 0.001), name
                continue
            line = torch.tensor(BILINEAR[weight.shape[-1]])
            assert torch.equal(weight[:, 0], torch.outer(line, line).expand_as(weight[:, 0])), name
            assert weight.shape[1] == 1 or is_uniform(weight[:, 1:], 1 / math.sqrt(weight[0].numel())), name
        elif isinstance(module, nn.Conv2d) and arch == "dlav0_34" and name.partition(".")[0] in ("base", "dla_up"):
            assert is_normal(module.weight, math.sqrt(2 / module.weight[:, 0].numel())), name


@needs_conformance
@pytest.mark.parametrize(
    "arch", sweep(sorted(path.stem for path in CONFORMANCE.glob("init/*.json")), slow=("_50", "_101"))
)
def test_start_of_every_entry(arch):
    listing = json.loads((CONFORMANCE / f"init/{arch}.json").read_text())
    kernels = np.load(CONFORMANCE / "init/bilinear_kernels.npz")
    state = build(arch, dict(listing["heads"])).state_dict()
    for entry in listing["entries"]:
        # What ImageNet weights replace starts as the library likes; BatchNorms as in today's library.
        kind = entry.get("kind_with_recent_pytorch", entry["kind"])
        name, value = entry["name"], state[entry["name"]]
        if kind == "constant":
            assert torch.all(value == entry.get("value_with_recent_pytorch", entry.get("value"))), name
        elif kind.startswith("uniform(-bound"):
            assert is_uniform(value, entry["bound"]), name
        elif kind.startswith("normal"):
            assert is_normal(value, entry["normal_std"]) or entry["overwritten_by_imagenet_checkpoint"], name
        else:
            assert kind.startswith("bilinear"), kind
            kernel = torch.from_numpy(kernels[f"{arch}|{name}"])
            assert torch.equal(value[:, 0], kernel.expand_as(value[:, 0])), name
            assert kind == "bilinear" or is_uniform(value[:, 1:], entry["bound"]), name


def is_uniform(values: torch.Tensor, bound: float) -> bool:
    """Return whether the values may be from U(-bound, bound): the range, and the spread to five standard errors."""
    values = values.detach().double().flatten()
    within = float(values.abs().max()) <= bound * (1 + 1e-6)
    return within and abs(float(values.square().mean()) / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / len(values))


def is_normal(values: torch.Tensor, std: float) -> bool:
    """Return whether values may be from N(0, std squared): the spread to five standard errors, and one beyond U."""
    values = values.detach().double().flatten()
    beyond = float(values.abs().max()) > math.sqrt(3) * std or len(values) < 100
    return beyond and abs(float(values.square().mean()) / std**2 - 1) < 5 * math.sqrt(2 / len(values))
