"""PyTorch exports come in as data: what is arithmetic is built for every target, what would run is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Ended
from projects import ALL_TARGETS, shared

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.errors import exit_code
from edgebuild.pipeline.ingest import load
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.ingest.torch import check as torch_check
from edgebuild.pipeline.ingest.torch import export as torch_export
from edgebuild.targets.errors import ToolMissingError

GRAPH = "model/models/model.json"
WEIGHTS = "model/data/weights/model_weights_config.json"
SAMPLES = "model/data/sample_inputs/model.pt"
EPOCHS = 4
BATCH = 50
LARGEST_DROP = 0.02


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle ran')",)


def program(target: str = "torch.ops.aten.relu.default", **more: Any) -> dict[str, Any]:
    node = {"target": target, "inputs": [], "metadata": {"torch_fn": "x", "nn_module_stack": "a,b,c"}}
    return {"graph_module": {"graph": {"nodes": [node]}}, "guards_code": ["exit()"], **more}


def archive(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "model.pt2"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def plain(graph: Any = None, weights: Any = None) -> dict[str, bytes]:
    return {
        GRAPH: json.dumps(graph or program()).encode(),
        WEIGHTS: json.dumps({"config": weights or {}}).encode(),
        SAMPLES: pickle.dumps(Bomb()),
    }


def size(text: str) -> dict[str, Any]:
    return program(sizes=[{"as_expr": {"expr_str": text}}])


def test_leaves_out_what_would_run(tmp_path: Path) -> None:
    torch_check.copy_data(archive(tmp_path, plain()), tmp_path / "clean.pt2")
    with zipfile.ZipFile(tmp_path / "clean.pt2") as clean:
        graph = json.loads(clean.read(GRAPH))
        assert clean.read(SAMPLES) == b""
    assert graph["guards_code"] == []
    assert graph["graph_module"]["graph"]["nodes"][0]["metadata"] == {"nn_module_stack": "a,b,c"}


@pytest.mark.parametrize("text", ["Symbol('s77', positive=True, integer=True)", "Add(Integer(1), Mul(Integer(2), s0))"])
def test_takes_sizes_that_are_arithmetic(tmp_path: Path, text: str) -> None:
    torch_check.copy_data(archive(tmp_path, plain(size(text))), tmp_path / "clean.pt2")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (plain(weights={"w": {"path_name": "weight_0", "use_pickle": True}}), "tensor 'w' is a pickle"),
        (plain(weights={"w": {"path_name": "custom_obj_0", "use_pickle": False}}), "tensor 'w' is a pickle"),
        (plain() | {"model/data/weights/model.pt": b""}, "no data of a plain export"),
        (plain() | {"model/data/constants/opaque_obj_0": b""}, "no data of a plain export"),
        (plain() | {"model/data/aotinductor/model/a.so": b""}, "no data of a plain export"),
        (plain() | {"model/../../x": b""}, "no data of a plain export"),
        (plain(program("torch.hub.load")), "calls torch.hub.load"),
        (plain(program("torch.ops.aten.from_file.default")), "calls torch.ops.aten.from_file"),
        (plain(program("_operator.call")), "calls _operator.call"),
        (plain(program("#own.op")), "calls #own.op"),
        (plain(size("__import__('os').system('true')")), "no arithmetic"),
        (plain(size("Symbol('s0').__class__")), "no arithmetic"),
        (plain(size("Symbol('__import__')(1)")), "no arithmetic"),
        (plain(size("open")), "no arithmetic"),
        (plain(program(a={"as_operator": "torch.load"})), "passes a function"),
        (plain(program(a={"in_spec": '[1, {"type": "collections.defaultdict"}]'})), "other containers"),
        ({"model/archive_version": b"0"}, "no exported program"),
        ({GRAPH: b"{"}, "no readable PyTorch export"),
    ],
)
def test_refuses_what_would_run(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        torch_check.copy_data(archive(tmp_path, members), tmp_path / "clean.pt2")
    assert "torch.export.save(" in refused.value.action


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ModelError, match="no readable PyTorch export"):
        torch_check.copy_data(path, tmp_path / "clean.pt2")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_refuses_pickles_with_the_line_that_makes_an_export(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="is a pickle") as refused:
        load.read(path)
    assert "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2')" in refused.value.action


def test_names_the_extra_where_pytorch_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_export, "find_spec", lambda _: None)
    with pytest.raises(ToolMissingError, match="torch and onnxscript is not installed") as refused:
        torch_export.read(archive(tmp_path, plain()), Options())
    assert "edgebuild[torch]" in refused.value.action
    assert exit_code(refused.value) == 9


def trained(images: Any, labels: Any) -> Any:
    """A residual net with batch normalization and a linear head, good enough to tell digits."""
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'edgebuild[torch]'")
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            self.depthwise = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8)
            self.head = nn.Linear(16 * 7 * 7, 10)

        def forward(self, image: Any) -> Any:
            x = self.stem(image)
            x = torch.relu(x + self.inner(x))
            return self.head(torch.relu(self.depthwise(x)).flatten(1))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for i in range(0, len(images), BATCH):
            loss = nn.functional.cross_entropy(net(images[i : i + BATCH]), labels[i : i + BATCH])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTorch's own
def test_an_exported_net_keeps_its_accuracy_on_four_targets(tmp_path: Path, run: Callable[..., Ended]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'edgebuild[torch]'")
    with np.load(shared("mnist/mnist_20k_2k.npz")) as data:
        train, test = (data[f"x_{split}"][:, None].astype(np.float32) / 255 for split in ("train", "test"))
        y_train, y_test = data["y_train"].astype(np.int64), data["y_test"].astype(np.int64)
    net = trained(torch.from_numpy(train[:5000]), torch.from_numpy(y_train[:5000]))
    with torch.no_grad():
        accuracy = float((net(torch.from_numpy(test)).argmax(1).numpy() == y_test).mean())
    exported = torch.export.export(net, (torch.from_numpy(test[:2]),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, tmp_path / "net.pt2")
    np.savez(tmp_path / "calibration.npz", image=train[:200])
    np.savez(tmp_path / "evaluation.npz", image=test, labels=y_test)
    files = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    config = {"model": "net.pt2", "data": files, "metric": "top1", "targets": ALL_TARGETS}
    (tmp_path / "edgebuild.yaml").write_text(yaml.safe_dump(config))
    ended = run("build", "--json", cwd=tmp_path)
    assert not ended.report["failures"], ended.stderr
    assert ended.report["model"]["source_format"] == "PyTorch export"
    assert set(ended.report["targets"]) == set(ALL_TARGETS)
    for target in ended.report["targets"].values():
        assert target["metric"]["float"] == accuracy
        assert target["metric"]["target"] >= accuracy - LARGEST_DROP
