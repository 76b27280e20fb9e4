"""LPIPS against the article's formula and torchmetrics' class; refusals of unusable weights."""

import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.errors import InputError, NotFound
from deblur.evaluation.lpips import definition, load_lpips, lpips

# torchvision's AlexNet: convolutions by their place among its features, and where LPIPS takes activations (ReLUs).
CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
STRIDE_AND_PADDING = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
CLASSIFIER = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}
HINT = "--lpips-weights takes the state dict of torchvision's alexnet"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """All tensors of torchvision's AlexNet, its convolutions random and its classifier of one repeated number."""
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for index, (filters, channels, size) in CONVOLUTIONS.items():
        scale = (2 / (channels * size * size)) ** 0.5
        tensors[f"features.{index}.weight"] = torch.randn(filters, channels, size, size, generator=draw) * scale
        tensors[f"features.{index}.bias"] = torch.randn(filters, generator=draw) / 10
    for index, shape in CLASSIFIER.items():
        tensors[f"classifier.{index}.weight"] = torch.zeros(1, 1).expand(shape)  # a file of a few bytes
        tensors[f"classifier.{index}.bias"] = torch.zeros(1).expand(shape[:1])
    return tensors


@pytest.fixture(scope="module")
def source(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def network(source: str) -> nn.Module:
    return load_lpips(source)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchvision's cache is empty, and its server unreachable."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)


def pictures(seed: int, height: int = 70, width: int = 95) -> Tensor:
    shape = (2, 3, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def plain_formula(state: dict[str, Tensor], heads: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Equation 1 of arXiv:1801.03924, in float64, with nothing of torchvision's or torchmetrics' code."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    x, y = ((side.double() / 127.5 - 1 - shift) / scale for side in (first, second))
    total = torch.zeros(len(first), dtype=torch.float64)
    for layer, (index, (stride, padding)) in enumerate(
        {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}.items()
    ):
        weight, bias = (state[f"features.{index}.{name}"].double() for name in ("weight", "bias"))
        if layer in (1, 2):
            x, y = (nn.functional.max_pool2d(side, 3, 2) for side in (x, y))
        x, y = (nn.functional.conv2d(side, weight, bias, stride, padding).clamp(min=0) for side in (x, y))
        unit_x, unit_y = (side / side.square().sum(dim=1, keepdim=True).sqrt() for side in (x, y))
        head = heads[f"lin{layer}.model.1.weight"].double().flatten()
        total += ((unit_x - unit_y).square() * head.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
    return total


def heads() -> dict[str, Tensor]:
    from torchmetrics.functional.image import lpips as module

    return torch.load(Path(module.__file__).parent / "lpips_models" / "alex.pth", "cpu", weights_only=True)


def test_the_distance_is_the_articles_formula(state: dict[str, Tensor], network: nn.Module) -> None:
    first, second = pictures(1), pictures(2)
    expected = plain_formula(state, heads(), first, second)
    found = lpips(network, first, second)
    assert found.shape == (2,)
    assert expected.min() > 0.01
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_the_distance_is_torchmetrics_with_the_weights_from_torchvisions_cache(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        assert url.endswith("alexnet-owt-7be5be79.pth")
        assert hash_prefix == "7be5be79"
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    first, second = pictures(1), pictures(2)
    found = lpips(load_lpips(None), first, second)
    theirs = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True)
    torch.testing.assert_close(found, theirs(first / 255, second / 255), rtol=1e-4, atol=1e-6)


def test_equal_pictures_have_distance_zero_and_worse_ones_more(network: nn.Module) -> None:
    sharp = pictures(1)
    little, much = (sharp // step * step for step in (16, 128))
    assert lpips(network, sharp, sharp).tolist() == [0, 0]
    assert (lpips(network, little, sharp) > 0).all()
    assert (lpips(network, little, sharp) < lpips(network, much, sharp)).all()


def test_a_file_with_only_the_convolutions_is_accepted(
    state: dict[str, Tensor], network: nn.Module, tmp_path: Path
) -> None:
    trunk = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    safetensors.torch.save_file(trunk, tmp_path / "trunk.safetensors")
    first, second = pictures(1), pictures(2)
    found = lpips(load_lpips(str(tmp_path / "trunk.safetensors")), first, second)
    assert torch.equal(found, lpips(network, first, second))


def test_pictures_too_small_for_alexnet_are_refused_with_both_sizes(network: nn.Module) -> None:
    assert lpips(network, pictures(1, 31, 31), pictures(2, 31, 31)).isfinite().all()
    with pytest.raises(ValueError, match=r"40x30 .*31x31"):
        lpips(network, pictures(1, 30, 40), pictures(2, 30, 40))


def test_a_failed_download_names_what_is_missing_and_the_flag() -> None:
    message = r"alexnet-owt-7be5be79.pth: cannot load torchvision's alexnet weights: no route to host; "
    with pytest.raises(InputError, match=f"{message}give --lpips-weights FILE"):
        load_lpips(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.3.bias": None}, "tensor features.3.bias is absent, expected [192]"),
        (
            {"features.0.weight": torch.zeros(64, 3, 3, 3)},
            "features.0.weight is [64, 3, 3, 3], expected [64, 3, 11, 11]",
        ),
        ({"features.12.weight": torch.zeros(1)}, "tensor features.12.weight is [1], expected absent"),
    ],
    ids=["missing", "misshapen", "of another network"],
)
def test_the_first_tensor_that_differs_is_named(
    state: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    other = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other\.pth: .*{re.escape(message)}; {HINT}"):
        load_lpips(str(tmp_path / "other.pth"))


class Malicious:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Malicious(str(tmp_path / "trace"))}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=rf"bad\.pth: .*without running code .*{HINT}"):
        load_lpips(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "trace").exists()  # the code runs if allowed


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_damaged_files_are_refused_with_the_fix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=rf"{name}: .*{HINT}"):
        load_lpips(str(tmp_path / name))


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"features.0.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: expected a dict of names and tensors"):
        load_lpips(str(tmp_path / "x.pth"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.pth"):
        load_lpips(str(tmp_path / "none.pth"))


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(InputError, match=re.escape("pip install -e '.[lpips]'")):
        load_lpips(source)


def test_the_definition_names_the_weights() -> None:
    assert "alexnet with torchvision's ImageNet weights" in definition(None)
    assert "alexnet with the weights of s3://bucket/a.pth" in definition("s3://bucket/a.pth")
