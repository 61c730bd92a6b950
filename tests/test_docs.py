"""The pages in docs/ and the other Markdown files: what they show runs, and what they name is."""

import argparse
import ast
import re
import shutil
from pathlib import Path

import pytest
import torch
from markdown_pages import PROGRAM, ROOT, command_lines, examples, mentioned_commands, page
from nets import conditional_unet

from autoguide_fast.cli.entry import build_parser

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCS = [name for name in DOCS if not name.startswith("docs/_build/")]
PAGES = [
    *DOCS,
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "autoguide_fast/pretrained/README.md",
]


# ----------------------------------------------------------------------------------------- examples
def ours(**options):
    """A real U-Net of diffusers, small, whose output is that of a net that was trained."""
    net = conditional_unet(**options)
    net.register_forward_hook(lambda net, given, output: (0.1 * output[0] + given[0],))
    return net


def for_diffusers():
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("diffusers.guiders")
    return {
        "unet": ours(width=8),
        "smaller_unet": ours(width=4),
        "scheduler": diffusers.DDIMScheduler(),
        "prompt": torch.randn(1, 3, 6),
        "empty_prompt": torch.zeros(1, 3, 6),
    }


class KDiffusion:
    """The denoiser of normal data, as k-diffusion has them."""

    sigma_min, sigma_max = 0.01, 90.0

    def __call__(self, x, sigma, class_labels=None):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def snapshot_files():
    for name in ("s.pkl", "xs.pkl"):
        shutil.copy(ROOT / "tests" / "data" / "pixels-labelled.pkl", name)
    return {}


def normal(x, sigma, class_labels=None):
    return x / (1 + sigma**2)


def images(count):
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)


# What a page's examples, which are run in order, find: names that stand for a reader's own.
GIVEN = {
    "docs/models.md": lambda: {
        "denoiser": normal,
        "worse": lambda x, sigma, labels: x / (1.2 + sigma**2),
        "noise": torch.randn(2, 3, 8, 8),
        "labels": None,
        "net": lambda x_t, time: x_t,
        "alphas_cumprod": torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0),
        "velocity_net": lambda x_t, time: -x_t,
    },
    "docs/from-reference.md": lambda: snapshot_files(),
    "docs/from-diffusers.md": for_diffusers,
    "docs/from-k-diffusion.md": lambda: {"wrapped": KDiffusion(), "wrapped_guide": KDiffusion()},
    "docs/guidance.md": lambda: {"pictures": images(20), "classes": [i % 10 for i in range(20)]},
    "docs/measuring.md": lambda: {
        "images": images(32),
        "real_images": images(32),
        "net": lambda given: given.flatten(1)[:, :4].float(),
    },
}


@pytest.mark.parametrize("name", [name for name in DOCS if examples(name, "python")])
def test_the_examples_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # for the tests after it
    names = GIVEN.get(name, dict)()
    for example in examples(name, "python"):
        example.run_in(names)
    for made in ("images", "latents", "x"):
        if isinstance(found := names.get(made), torch.Tensor):
            assert found.isfinite().all() and found.float().std() > 0


# ----------------------------------------------------------------------------------- command lines
@pytest.mark.parametrize("name", PAGES)
def test_command_lines_are_understood(name, capsys):
    parser = build_parser()
    for words in command_lines(name):
        try:
            parser.parse_args(words)
        except SystemExit as end:  # as --help does
            assert end.code == 0, f"{name}: {' '.join(words)}: {capsys.readouterr().err}"


def parser_of(words):
    """The parser that sees the options of a command line, and those options."""
    parser, rest = build_parser(), list(words)
    while rest:
        commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not commands or rest[0] not in commands[0].choices:
            break
        parser = commands[0].choices[rest.pop(0)]
    return parser, [word.partition("=")[0] for word in rest if word.startswith("--")]


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_the_text_have_these_options(name):
    for words in mentioned_commands(name):
        if not words[0].isupper():
            parser, options = parser_of(words)
            assert parser.prog != PROGRAM or words[0].startswith("-"), f"{name}: {words}"
            for option in options:
                assert option in parser._option_string_actions, f"{name}: {' '.join(words)}"


def test_command_lines_are_found():
    assert sum(len(command_lines(name)) for name in PAGES) > 50
    second = command_lines("autoguide_fast/pretrained/README.md")[1]
    assert second[:4] == ["train", "--out", "runs/uncond", "--no-labels"]
    assert second[-2:] == ["--snapshots", "8"]  # of the line below
    assert ["presets"] in mentioned_commands("README.md")


# -------------------------------------------------------------------------------------------- links
def anchors(name):
    """Names under which GitHub and MyST find a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert found.exists(), f"{name}: {target}"
        if anchor:
            held = found.relative_to(ROOT).as_posix()
            if held == "docs/model-card.md":  # which includes it
                held = "autoguide_fast/pretrained/README.md"
            assert anchor in anchors(held), f"{name}: {target}"


def test_every_page_is_in_the_contents():
    for folder in ("docs", "docs/api"):
        listed = set()
        for block in examples(f"{folder}/index.md", "{toctree}"):
            listed |= {line for line in block.code.splitlines() if line and line[0] != ":"}
        pages = {Path(n).stem for n in DOCS if Path(n).parent.as_posix() == folder} - {"index"}
        assert listed - {"api/index"} == pages


# ----------------------------------------------------------------------------------------- messages
def messages():
    """All texts in the source; what is put into them when they are raised is "…"."""
    found = []
    for folder in ("autoguide_fast", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_messages_are_those_of_the_source():
    quoted = re.findall(r"^### `(.+)`$", page("docs/troubleshooting.md"), re.MULTILINE)
    texts = messages()
    assert len(quoted) >= 15
    for message in quoted:
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" ,")]
        parts[0] = re.sub(r"^\w+:", r"(\\w+|…):", parts[0])  # the function's name may be put in
        pattern = re.compile(".*?".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message
