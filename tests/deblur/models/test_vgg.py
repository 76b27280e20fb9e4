"""Perceptual features against torchvision's own layers; refusals of other weights."""

import contextlib
import hashlib
import logging
import math
import pickle
import re
from io import BytesIO

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms.functional import normalize

from cluster.errors import InputError, NotFound
from deblur.models.vgg import Features, digest, load_features

# Features, torchvision's configuration of the network, and its layers up to the activation.
TRUNKS = [
    ("vgg16-block3_conv3", "D", 16),
    ("vgg16-conv3_3", "D", 15),
    ("vgg19-conv3_3", "E", 15),
    ("vgg16-block1_conv1", "D", 2),
]
HINT = "--vgg-weights takes a state dict with torchvision's names"


@pytest.fixture(scope="module")
def networks():
    """torchvision's convolutions of VGG16 and VGG19 with random weights."""
    torch.manual_seed(1)
    return {name: make_layers(cfgs[name]) for name in ("D", "E")}


def _state(network, keep=lambda index: True):
    """As torchvision saves it: the convolutions under features., and a classifier."""
    tensors = {f"features.{key}": value for key, value in network.state_dict().items()}
    kept = {key: value for key, value in tensors.items() if keep(int(key.split(".")[1]))}
    return kept | {"classifier.0.weight": torch.ones(2, 2)}


def _save(path, state):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def _pictures(seed=0):
    return torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("name", "network", "length"), TRUNKS)
def test_activations_are_torchvisions_of_normalised_pictures(networks, tmp_path, name, network, length, suffix):
    source = _save(tmp_path / f"weights{suffix}", _state(networks[network]))
    pictures = _pictures()
    normalised = normalize((pictures + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = networks[network][:length](normalised).detach()
    found = load_features(name, "pretrained", source)(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found < 0).any() == name.endswith("-conv3_3")  # the only ones before their ReLU


def test_every_picture_of_a_batch_is_normalised():
    features, pictures = load_features("vgg16-block1_conv1", "random", None).double(), _pictures().double()
    before = pictures.clone()
    alone = torch.cat([features(picture[None]) for picture in pictures])
    torch.testing.assert_close(features(pictures), alone, rtol=1e-10, atol=1e-10)
    assert torch.equal(pictures, before)


def test_weights_are_frozen_and_pictures_get_a_gradient():
    features = load_features("vgg16-block1_conv1", "random", None)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    pictures = _pictures().requires_grad_()
    features(pictures).square().sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in features.parameters())


def test_features_stay_in_eval_mode():
    parent = nn.Sequential(load_features("vgg16-block1_conv1", "random", None))
    parent.train()
    assert parent.training
    assert not any(module.training for module in parent[0].modules())


def test_random_weights_are_fixed_he_normal_and_logged(caplog):
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING):
        features = load_features("vgg16-block3_conv3", "random", None)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "random VGG" in caplog.text
    assert "not perceptual" in caplog.text
    torch.manual_seed(2)
    assert digest(features) == digest(load_features("vgg16-block3_conv3", "random", None))
    weight = dict(features.named_parameters())["features.14.weight"]
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_loading_draws_nothing_from_torchs_global_generator(networks, tmp_path, weights):
    source = _save(tmp_path / "weights.pth", _state(networks["D"])) if weights == "pretrained" else None
    before = torch.get_rng_state()
    load_features("vgg16-block3_conv3", weights, source)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_that_ends_with_the_trunk_is_accepted_for_both_networks(networks, tmp_path):
    source = _save(tmp_path / "trunk.pth", _state(networks["D"], keep=lambda index: index <= 14))
    as_vgg16 = load_features("vgg16-block3_conv3", "pretrained", source)
    as_vgg19 = load_features("vgg19-conv3_3", "pretrained", source)
    before_relu = load_features("vgg16-conv3_3", "pretrained", source)
    assert digest(as_vgg16) == digest(as_vgg19) == digest(before_relu)


def test_a_source_in_a_bucket_is_read_through_storage(networks, monkeypatch):
    saved = BytesIO()
    torch.save(_state(networks["D"]), saved)
    monkeypatch.setattr("deblur.models.weights.read_url", {"s3://bucket/vgg.pth": saved.getvalue()}.__getitem__)
    features = load_features("vgg16-block3_conv3", "pretrained", "s3://bucket/vgg.pth")
    assert torch.equal(features.state_dict()["features.0.weight"], networks["D"].state_dict()["0.weight"])


def test_the_digest_is_of_names_shapes_and_little_endian_bytes(networks, tmp_path):
    state = _state(networks["D"], keep=lambda index: index <= 0)
    expected = hashlib.sha256()
    for key in sorted(key for key in state if key.startswith("features.")):
        array = state[key].numpy()
        expected.update(f"{key} {list(array.shape)}\n".encode() + np.ascontiguousarray(array, "<f4").tobytes())
    source = _save(tmp_path / "a.safetensors", state)
    assert digest(load_features("vgg16-block1_conv1", "pretrained", source)) == expected.hexdigest()


def test_the_digest_changes_with_one_weight():
    features = load_features("vgg16-block1_conv1", "random", None)
    before = digest(features)
    with torch.no_grad():
        features.features[0].bias[63] = 1e-30
    assert digest(features) != before


@pytest.mark.parametrize(
    ("wanted", "network", "found"),
    [
        ("vgg19-conv3_3", "D", "vgg16"),
        ("vgg16-conv3_3", "E", "vgg19"),
        ("vgg16-block3_conv3", "E", "vgg19"),
        ("vgg16-block1_conv1", "E", "vgg19"),
    ],
)
def test_weights_of_the_other_network_are_refused(networks, tmp_path, wanted, network, found):
    source = _save(tmp_path / "other.pth", _state(networks[network]))
    message = f"{source}: holds {found} (by its layers after conv3_3), expected {wanted.split('-')[0]}; {HINT}"
    with pytest.raises(InputError, match=re.escape(message)):
        load_features(wanted, "pretrained", source)


def test_a_missing_tensor_is_named_with_its_source_and_shape(networks, tmp_path):
    state = _state(networks["D"])
    del state["features.5.bias"], state["features.14.weight"]
    source = _save(tmp_path / "partial.pth", state)
    message = f"{source}: has no features.5.bias; expected vgg16's, of shape [128]; {HINT}"
    with pytest.raises(InputError, match=re.escape(message)):
        load_features("vgg16-block3_conv3", "pretrained", source)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(networks, tmp_path):
    state = _state(networks["D"]) | {"features.2.weight": torch.zeros(64, 3, 3, 3)}
    source = _save(tmp_path / "wrong.safetensors", state)
    message = f"{source}: features.2.weight has shape [64, 3, 3, 3]; expected vgg16's [64, 64, 3, 3]; {HINT}"
    with pytest.raises(InputError, match=re.escape(message)):
        load_features("vgg16-block3_conv3", "pretrained", source)


def _plain_pickle(content, file):
    pickle.dump(content, file, protocol=2)


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, _plain_pickle])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, write):
    trace, source = tmp_path / "trace", tmp_path / "bad.pth"
    with open(source, "wb") as file:
        write({"features.0.weight": _Malicious(str(trace))}, file)
    with pytest.raises(InputError, match=re.escape(f"{source}: cannot load tensors without running code")):
        load_features("vgg16-block3_conv3", "pretrained", str(source))
    assert not trace.exists()
    with contextlib.suppress(RuntimeError):  # torch.load then refuses pickle.dump's file
        torch.load(source, weights_only=False)
    assert trace.exists()  # the code runs if allowed


@pytest.mark.parametrize("name", ["bytes.pth", "bytes.safetensors"])
@pytest.mark.parametrize("data", [b"", b"not weights at all"], ids=["empty", "text"])
def test_damaged_files_are_refused_with_the_fix(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: .*; {re.escape(HINT)}"):
        load_features("vgg16-block3_conv3", "pretrained", str(tmp_path / name))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"features.0.weight": torch.zeros(1)}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x.pth: expected a dict of names and tensors"):
        load_features("vgg16-block3_conv3", "pretrained", str(tmp_path / "x.pth"))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"none.pth: no such file"):
        load_features("vgg16-block3_conv3", "pretrained", str(tmp_path / "none.pth"))


@pytest.mark.parametrize(("name", "file"), [("vgg16-block3_conv3", "vgg16-"), ("vgg19-conv3_3", "vgg19-")])
def test_a_failed_download_names_the_weights_and_both_flags(monkeypatch, tmp_path, name, file):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    message = rf"{file}.*\.pth: cannot load torchvision's {name[:5]} weights: no route to host; "
    with pytest.raises(InputError, match=f"{message}give --vgg-weights FILE .* --feature-weights random"):
        load_features(name, "pretrained", None)


def test_torchvisions_cached_file_is_used_without_a_source(networks, monkeypatch, tmp_path):
    def download(url, target, hash_prefix, progress):
        assert url.endswith("vgg19-dcbb9e9d.pth")
        assert hash_prefix == "dcbb9e9d"
        torch.save(_state(networks["E"]), target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    features = load_features("vgg19-conv3_3", "pretrained", None)
    assert torch.equal(features.state_dict()["features.14.bias"], networks["E"].state_dict()["14.bias"])


def test_a_trunk_has_no_more_layers_than_it_needs():
    assert [len(Features(name).features) for name, _, _ in TRUNKS] == [length for *_, length in TRUNKS]
