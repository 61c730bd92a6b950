"""Networks under `torch.compile` and `torch.export`: one graph, any batch, another process."""

import subprocess
import sys

import pytest
import torch
from nets import tiny

import autoguide_fast
from autoguide_fast.networks import Precond

BATCH = torch.export.Dim("batch", min=2, max=64)


def inputs(net: Precond, batch: int):
    generator = torch.Generator().manual_seed(batch)
    shape = batch, net.img_channels, net.img_resolution, net.img_resolution
    labels = torch.eye(net.label_dim)[torch.arange(batch) % net.label_dim]
    return torch.randn(shape, generator=generator), torch.linspace(0.1, 5, batch), labels


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A net, its exported program, and the file that this was saved in."""
    net = tiny().requires_grad_(False)
    shapes = {"x": {0: BATCH}, "sigma": {0: BATCH}, "class_labels": {0: BATCH}}
    program = torch.export.export(net, inputs(net, 3), dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    torch.export.save(program, path)
    return net, program, path


def test_our_operators_stay_one_node_each(exported):
    _, program, _ = exported
    names = [str(node.target) for node in program.graph.nodes]
    assert sum(name.startswith("autoguide_fast.mp_silu") for name in names) > 3
    assert not any("silu" in name and not name.startswith("autoguide_fast") for name in names)


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_exported_nets_take_any_batch(exported, batch):
    net, program, _ = exported
    x, sigma, labels = inputs(net, batch)
    torch.testing.assert_close(program.module()(x, sigma, labels), net(x, sigma, labels))


def test_exported_nets_are_sampled_in_another_process(exported, tmp_path):
    net, _, path = exported
    x, sigma, labels = inputs(net, 4)
    torch.save((x, sigma, labels, net(x, sigma, labels)), tmp_path / "values.pt")
    code = f"""
import torch, autoguide_fast
net = torch.export.load({str(path)!r}).module()
x, sigma, labels, expected = torch.load({str(tmp_path / "values.pt")!r})
torch.testing.assert_close(net(x, sigma, labels), expected)
denoiser = lambda x, sigma, labels: net(x, sigma.expand(len(x)), labels)
images = autoguide_fast.sample(
    denoiser, noise=x, class_labels=labels, num_steps=3, seeds=range(4)
)
torch.save(images, {str(tmp_path / "images.pt")!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    images = torch.load(tmp_path / "images.pt")
    expected = autoguide_fast.sample(net, noise=x, class_labels=labels, num_steps=3, raw=True)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_load_says_how_an_exported_net_is_read(exported):
    with pytest.raises(ValueError, match=r"import autoguide_fast.*torch\.export\.load"):
        autoguide_fast.load(exported[2])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_nets_are_one_graph(dynamic):
    """The generated code is what `bench_pairs.py` compares; here, that nothing splits the graph."""
    torch._dynamo.reset()
    net = tiny().requires_grad_(False)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="eager")
    for batch in (2, 5):
        x, sigma, labels = inputs(net, batch)
        torch.testing.assert_close(compiled(x, sigma, labels), net(x, sigma, labels))
