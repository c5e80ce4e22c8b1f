"""Backbone weights: files of every published kind, and downloads from a server that fails or returns wrong files."""

import hashlib
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from centernet.errors import UserError
from centernet.models import ARCHITECTURES, create_model, save_model
from centernet.models.dla import DLA34
from centernet.models.downloads import DLA_WEIGHTS, IMAGENET_WEIGHTS, Download
from centernet.models.pretrained import load_pretrained
from centernet.models.weights import read_safetensors

HEADS = {"hm": 3, "wh": 2, "reg": 2}


@pytest.fixture(scope="module")
def dla_state():
    """Return weights like those of DLA's authors, with other values: the backbone's names, and the classifier."""
    torch.manual_seed(5)
    return DLA34(fc=True).state_dict()


def timm_state(state: dict) -> dict:
    """timm's network has no shortcuts at level 3 and 4, which nothing reads."""
    return {name: value for name, value in state.items() if not name.startswith(("level3.project", "level4.project"))}


def write_safetensors(path, state: dict) -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    for name, value in state.items():
        part = value.contiguous().numpy().tobytes()
        place = [len(data), len(data) + len(part)]
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": place}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def backbone_of(model: nn.Module, prefix: str = "base.") -> dict:
    return {name.removeprefix(prefix): v for name, v in model.state_dict().items() if name.startswith(prefix)}


def check_loaded(model: nn.Module, state: dict, prefix: str = "base.") -> None:
    own = backbone_of(model, prefix)
    shared = [name for name in state if name in own and not name.startswith("fc.")]
    assert len(shared) >= 100 and all(torch.equal(own[name], state[name]) for name in shared)


@pytest.mark.parametrize("kind", ["authors", "timm", "safetensors", "checkpoint", "wrapped checkpoint"])
@pytest.mark.parametrize("arch", ["dla_34", "dlav0_34"])
def test_every_kind_of_file_for_dla(tmp_path, dla_state, arch, kind):
    path, state = tmp_path / "file.pth", dla_state
    if kind == "authors":
        # Written in 2018: the old format, and no counters of batches.
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "timm":
        state = timm_state(state)
        torch.save(state, path)
    elif kind == "safetensors":
        path, state = tmp_path / "model.safetensors", timm_state(state)
        write_safetensors(path, state)
    else:
        model = create_model(arch, HEADS, 64)
        state = backbone_of(model)
        if kind == "checkpoint":
            save_model(path, 3, model, torch.optim.Adam(model.parameters()), {"model": {"arch": arch}})
        else:
            state_dict = {f"module.{name}": value for name, value in model.state_dict().items()}
            torch.save({"epoch": 3, "state_dict": state_dict}, path)
    lines = []
    check_loaded(create_model(arch, HEADS, 64, str(path), log=lines.append), state)
    assert len(lines) == 1 and str(path) in lines[0]


@pytest.mark.parametrize("old", [True, False])
def test_torchvision_s_file_for_resnets(tmp_path, old):
    state = resnet18().state_dict()
    if old:
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "resnet18.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    for arch in ("res_18", "resdcn_18"):
        check_loaded(create_model(arch, HEADS, 64, str(path), log=lambda _: None), state, "")
    with pytest.raises(UserError, match=r"resnet18.pth lacks \d+ of the \d+ entries of the backbone of res_34"):
        create_model("res_34", HEADS, 64, str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level2.tree1.conv1.weight": None}, "lacks 1 of the .* such as base.level2.tree1.conv1.weight"),
        ({"level5.root.bn.running_var": torch.ones(3)}, "lacks 1 of the .* base.level5.root.bn.running_var"),
        ({"base_layer.0.weight": torch.full((16, 3, 7, 7), torch.nan)}, "base.base_layer.0.weight .* not finite"),
    ],
)
def test_incomplete_or_damaged_backbones_are_refused(tmp_path, dla_state, change, message):
    state = {name: value for name, value in (dla_state | change).items() if value is not None}
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=f"odd.pth.*{message}"):
        create_model("dla_34", HEADS, 64, str(path))


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(UserError, match="other.pth: none of its 1 entries fits dla_34"):
        create_model("dla_34", HEADS, 64, str(path))
    torch.save({"state_dict": [1, 2]}, path)
    with pytest.raises(UserError, match="other.pth: its state_dict is a list"):
        create_model("dla_34", HEADS, 64, str(path))
    with pytest.raises(UserError, match="missing.safetensors: no such"):
        create_model("dla_34", HEADS, 64, str(tmp_path / "missing.safetensors"))


def test_safetensors_come_back_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {"x": torch.randn(3, 4), "n": torch.tensor(7), "e": torch.empty(0, 2)}
    write_safetensors(path, state)
    assert all(torch.equal(value, state[name]) for name, value in read_safetensors(path).items())
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], whole.replace(b'"F32"', b'"F99"')):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.safetensors: this file cannot be read"):
            read_safetensors(path)


# Downloads


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path and writes down what it is asked for."""

    def __init__(self) -> None:
        self.files, self.asked = {}, []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def two(server, tmp_path, dla_state):
    """A dead address and one that answers with timm's file; the model; the folder of the cache."""
    path = tmp_path / "timm.bin"
    torch.save(timm_state(dla_state), path)
    content = path.read_bytes()
    server.files["/timm/pytorch_model.bin"] = content
    downloads = [
        Download.of("http://127.0.0.1:9/dla34-ba72cf86.pth"),
        Download(f"{server.url}/timm/pytorch_model.bin", hashlib.sha256(content).hexdigest(), "timm_dla34.bin"),
    ]
    return downloads, create_model("dla_34", HEADS, 64), tmp_path / "home/hub/checkpoints"


def load(model, downloads, log=lambda _: None) -> None:
    load_pretrained(model, "dla_34", "imagenet", downloads, "base.", ("base.",), log)


def test_the_second_address_is_taken_and_then_the_cache(server, two, dla_state):
    downloads, model, cache = two
    lines = []
    load(model, downloads, lines.append)
    check_loaded(model, timm_state(dla_state))
    assert server.asked == ["/timm/pytorch_model.bin"] and downloads[1].url in lines[-1]
    assert [path.name for path in cache.iterdir()] == ["timm_dla34.bin"]
    again = create_model("dla_34", HEADS, 64)
    load(again, downloads, lines.append)
    check_loaded(again, timm_state(dla_state))
    assert len(server.asked) == 1 and str(cache / "timm_dla34.bin") in lines[-1]


def test_another_check_sum_is_refused(server, two):
    downloads, model, cache = two
    server.files["/timm/pytorch_model.bin"] += b"x"
    with pytest.raises(UserError, match="invalid hash value") as caught:
        load(model, downloads)
    assert not list(cache.iterdir())
    text = str(caught.value)
    assert f"put dla34-ba72cf86.pth or pytorch_model.bin under the name timm_dla34.bin into {cache}" in text
    assert "\n" not in text and downloads[0].url in text and downloads[1].url in text
    (cache / "dla34-ba72cf86.pth").write_bytes(b"put there by hand")
    with pytest.raises(UserError, match="dla34-ba72cf86.pth is damaged or another file .*remove it"):
        load(model, downloads)


def test_other_content_is_refused(server, two, tmp_path):
    _, model, _ = two
    path = tmp_path / "other.bin"
    torch.save({"base_layer.0.weight": torch.zeros(16, 3, 7, 7)}, path)
    content = path.read_bytes()
    server.files["/other.bin"] = content
    other = Download(f"{server.url}/other.bin", hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match=r"other.bin lacks \d+ of the \d+ entries of the backbone of dla_34"):
        load(model, [other])


def test_no_weights_of_that_network():
    with pytest.raises(UserError, match="hourglass has no ImageNet weights"):
        load_pretrained(nn.Identity(), "hourglass", "imagenet", ARCHITECTURES["hourglass"].imagenet.get(0, []))


def test_published_addresses_have_check_sums_and_names_of_their_own():
    known = [*DLA_WEIGHTS.values(), *IMAGENET_WEIGHTS.values()]
    downloads = [download for several in known for download in several]
    assert all(len(d.sha256) >= 8 and int(d.sha256, 16) >= 0 for d in downloads)
    assert len({d.cached for d in downloads}) == len(downloads) == 7
    assert all(set(family.imagenet) == set(family.depths) for family in ARCHITECTURES.values() if family.imagenet)
