"""Published PyTorch weights: networks rebuilt from the publications give the same pictures as their imports."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from deblur.models.generator import ResNetGenerator
from deblur.models.nafnet import NAFNet
from deblur.models.published import Network, import_weights
from deblur.models.trained import load_model
from tests.deblur.models import nafnet_reference

State = dict[str, Tensor]


class _Sum(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def deblurgan(filters: int = 4, blocks: int = 2, dropout: bool = True) -> nn.Sequential:
    """What comes before `learn_residual` in DeblurGAN's ResnetGenerator, whose only child is named model."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.InstanceNorm2d(channels, track_running_stats=True), nn.ReLU()]

    def padded(channels: int, out: int, side: int) -> list[nn.Module]:
        return [nn.ReflectionPad2d(side // 2), nn.Conv2d(channels, out, side)]

    f = filters
    layers = [*padded(3, f, 7), *norm(f)]
    layers += [nn.Conv2d(f, 2 * f, 3, 2, 1), *norm(2 * f), nn.Conv2d(2 * f, 4 * f, 3, 2, 1), *norm(4 * f)]
    for _ in range(blocks):
        between = [nn.Dropout(0.5)] if dropout else []
        layers.append(
            _Sum([*padded(4 * f, 4 * f, 3), *norm(4 * f), *between, *padded(4 * f, 4 * f, 3), norm(4 * f)[0]])
        )
    for width in (4 * f, 2 * f):
        layers += [nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1), *norm(width // 2)]
    layers += [*padded(f, 3, 7), nn.Tanh()]
    torch.manual_seed(3)
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return network


def deblurgan_state(network: nn.Sequential) -> State:
    return {f"model.{name}": tensor for name, tensor in network.state_dict().items()}


def nafnet_state() -> State:
    torch.manual_seed(4)
    network = NAFNet(filters=4, encoder_blocks=(1, 0, 2), middle_blocks=2, decoder_blocks=(1, 2, 0), train_crop=256)
    return {name: torch.randn(tensor.shape) * 0.3 for name, tensor in network.state_dict().items()}


def imported(network: Network, content: object, folder: Path) -> nn.Module:
    torch.save(content, folder / "net.pth")
    import_weights(network, str(folder / "net.pth"), str(folder / "net.safetensors"))
    return load_model(str(folder / "net.safetensors"), torch.device("cpu"))


@pytest.mark.parametrize("dropout", [True, False])
def test_an_imported_deblurgan_restores_as_the_original(dropout: bool, tmp_path: Path) -> None:
    original = deblurgan(dropout=dropout)
    blurred = torch.rand(2, 3, 24, 32) * 2 - 1
    original(torch.rand(2, 3, 24, 32) * 3)  # its running statistics are now others than 0 and 1
    found = imported("deblurgan", deblurgan_state(original), tmp_path)
    for module in original.modules():  # DeblurGAN never switches to eval mode: statistics are the picture's
        module.train(not isinstance(module, nn.Dropout))
    with torch.no_grad():
        expected = (original(blurred) + blurred).clamp(-1, 1)
        torch.testing.assert_close(found(blurred), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(found, ResNetGenerator)


def test_deblurgan_in_the_format_of_old_pytorch_is_read(tmp_path: Path) -> None:
    state = {k: v for k, v in deblurgan_state(deblurgan()).items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "latest_net_G.pth", _use_new_zipfile_serialization=False)
    line = import_weights("deblurgan", str(tmp_path / "latest_net_G.pth"), str(tmp_path / "net.safetensors"))
    assert f"{sum(v.numel() for k, v in state.items() if 'running' not in k):,}" in line


@pytest.mark.parametrize(
    "wrap",
    [lambda state: {"params": state}, lambda state: state, lambda state: {f"module.{k}": v for k, v in state.items()}],
    ids=["BasicSR", "plain", "DataParallel"],
)
def test_an_imported_nafnet_computes_the_papers_equations(wrap: Callable[[State], object], tmp_path: Path) -> None:
    state = nafnet_state()
    found = imported("nafnet", wrap(state), tmp_path)
    picture = np.random.default_rng(0).random((3, 19, 26))
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    expected = nafnet_reference.network(picture, weights, levels=3)
    with torch.no_grad():
        restored = found.double()(torch.from_numpy(picture * 2 - 1)[None])[0].numpy()
    np.testing.assert_allclose((restored + 1) / 2, expected, rtol=1e-9, atol=1e-9)


def test_a_published_nafnet_averages_over_384_pixels(tmp_path: Path) -> None:
    found = imported("nafnet", {"params": nafnet_state()}, tmp_path)
    assert found.get_submodule("encoders.0.0.sca.0").window == 384  # NAFNetLocal of the published GoPro scores


def _without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def _with(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: tensor}


@pytest.mark.parametrize(
    ("network", "change", "named"),
    [
        ("nafnet", _without("intro.weight"), "intro.weight"),
        ("nafnet", _without("encoders.2.1.beta"), "encoders.2.1.beta"),
        ("nafnet", _without("ups.1.0.weight"), "ups.1.0.weight"),
        ("nafnet", _with("encoders.7.0.beta", torch.zeros(1, 4, 1, 1)), "encoders.7.0.beta"),
        ("nafnet", _with("intro.weight", torch.tensor(1.0)), "intro.weight"),
        ("nafnet", _with("intro.weight", torch.zeros(0, 3, 3, 3)), "intro.weight"),
        ("nafnet", _with("intro.bias", torch.tensor([0, 0, 0, torch.nan])), "intro.bias"),
        ("nafnet", _with("intro.bias", torch.zeros(4, dtype=torch.int32)), "intro.bias"),
        ("deblurgan", _without("model.1.weight"), "model.1.weight"),
        ("deblurgan", _without("model.11.conv_block.6.bias"), "model.11.conv_block.6.bias"),
        ("deblurgan", _with("model.2.weight", torch.ones(4)), "model.2.weight"),  # BatchNorm
        ("deblurgan", _with("model.12.weight", torch.ones(16, 8, 4, 4)), "model.12.weight"),
        ("deblurgan", _with("model.1.bias", torch.full((4,), -torch.inf)), "model.1.bias"),
    ],
)
def test_other_tensors_are_refused_by_their_published_name(
    network: Network, change: Callable[[State], State], named: str, tmp_path: Path
) -> None:
    state = change(nafnet_state() if network == "nafnet" else deblurgan_state(deblurgan()))
    with pytest.raises(InputError, match=rf"net\.pth: .*{re.escape(named)} ") as error:
        imported(network, state, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize(("network", "other"), [("nafnet", "deblurgan"), ("deblurgan", "nafnet")])
def test_the_other_network_is_refused(network: Network, other: str, tmp_path: Path) -> None:
    state = nafnet_state() if other == "nafnet" else deblurgan_state(deblurgan())
    with pytest.raises(InputError, match=r"net\.pth"):
        imported(network, state, tmp_path)


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("network", ["nafnet", "deblurgan"])
def test_code_truncation_and_other_content_are_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net\.pth"):
        imported(network, {"params": _Malicious(tmp_path / "trace")}, tmp_path)
    assert not (tmp_path / "trace").exists()
    for content in ([1], {"params": [1]}, {"epoch": 3}, {}):
        with pytest.raises(InputError, match=r"net\.pth"):
            imported(network, content, tmp_path)
    torch.save(nafnet_state(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.pth"):
        import_weights(network, str(tmp_path / "cut.pth"), str(tmp_path / "net.safetensors"))


def test_half_precision_and_shared_tensors_become_separate_float32(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in nafnet_state().items()}
    state["encoders.2.1.beta"] = state["encoders.2.0.beta"]
    found = imported("nafnet", state, tmp_path).state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["encoders.2.1.beta"], state["encoders.2.0.beta"].float())
