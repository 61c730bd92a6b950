"""`autoguide-fast sample`: seeds in, a folder of PNGs, a ZIP file or an .npz out."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .arguments import integer_ranges, positive_integer, weight_or_file
from .sampling.options import Sampling

_DESCRIPTION = """\
Sample images, each from its seed, into a folder of PNGs with a grid of the first of them, a ZIP
file or an .npz.

A command that was stopped, killed or had no room left goes on when it is repeated: images that are
there whole are kept. Several processes, started by torchrun or by hand with the same options and
--out, on any machines that see the folder, share the batches out among themselves; if one dies, the
others do its work. Batches are the same however many there are, so the files are, too. Another job
in the same folder at the same time is refused; later, one with the same nets and settings may add
seeds.

In the folder, 00012/012345.png is the image of seed 12345, and 00012/012345-class3.png if its class
was asked for. A ZIP file is one that the reference implementation reads, 00000/img00000000.png with
the labels in dataset.json; an .npz is one that ADM's evaluator reads, arr_0 and, for labels, arr_1.
Their images are collected in FILE.partial, which is removed at the end. manifest.json, in the
folder or the file, says all that it takes to sample the images once more.
"""

_EXAMPLES = """\
examples:
  # 64 threes from the bundled digits, autoguidance at w = 1.5
  autoguide-fast sample --model digits --guidance 1.5 --seeds 0-63 --classes 3 --out out/

  # the same seeds without guidance
  autoguide-fast sample --model digits --seeds 0-63 --classes 3 --out unguided/

  # classifier-free guidance with the bundled unconditional net, one seed in all ten classes
  autoguide-fast sample --guide digits-uncond --guidance 1.5 --seeds 7 --classes 0-9 \\
      --out seven/

  # weights by noise level, as `autoguide-fast diagnose` found them for these nets
  autoguide-fast sample --model digits --guidance auto --seeds 0-63 --out auto/

  # your own nets, with noise added along the way
  autoguide-fast sample --model main.safetensors --guide guide.safetensors --guidance 2 \\
      --seeds 0-9999 --churn 40 --batch-size 256 --out images/

  # 50,000 images for an FID by four processes, each with its own GPU if there are any; the ZIP
  # appears when it is complete, and --max-restarts replaces a process that dies (on CPUs, say
  # OMP_NUM_THREADS=N before it: torchrun gives each process one thread otherwise)
  torchrun --nproc-per-node 4 --max-restarts 3 -m autoguide_fast.cli sample \\
      --guidance 1.5 --seeds 0-49999 --balanced --out digits.zip

  # the same once more, on whatever machine; refused if a net is another by now
  autoguide-fast sample --from-manifest digits.zip --out again.zip
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `sample` to the command line."""
    parser = subparsers.add_parser(
        "sample",
        help="sample images into a folder, a ZIP file or an .npz",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # `Sampling` has the defaults
    )
    add = parser.add_argument_group("what to sample").add_argument
    add(
        "--model",
        "--preset",
        metavar="NET",
        help="a bundled net's name, a preset (see `autoguide-fast presets`), a .safetensors file, "
        "or a .pkl of the reference implementation (default: digits)",
    )
    add(
        "--seeds",
        type=integer_ranges,
        help="one image each, such as 0-63 or 0,5,9-12 (default: 0-63)",
    )
    add(
        "--classes",
        type=integer_ranges,
        help="such as 3 or 0-9; paired with the seeds, and the shorter of both lists is repeated "
        "(default: each seed draws its class)",
    )
    add(
        "--balanced",
        action="store_true",
        help="all classes in equal shares: of K classes, image i of the seeds as listed, counted "
        "from 0, has class i mod K",
    )
    add(
        "--from-manifest",
        type=Path,
        default=None,
        metavar="FILE",
        help="sample what a manifest.json says, or that of a folder, ZIP file or .npz, instead of "
        "what these options say; --model and --guide may name where the same nets are now",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder to write to, made if absent; or a file FILE.zip or FILE.npz",
    )
    add = parser.add_argument_group("guidance").add_argument
    add(
        "--guidance",
        type=weight_or_file,
        nargs="+",
        metavar="W",
        help="guidance weight, one for each guide; 1 is no guidance and never runs the guide; or "
        "a file that `diagnose` wrote for these nets, with weights by noise level; or auto, for "
        "the file beside the model's (default: that of a preset, otherwise 1)",
    )
    add(
        "--guide",
        nargs="+",
        metavar="NET",
        help="the net to guide away from, or several at once; self:OPTION,... is the model itself, "
        "weakened or told something else: left_out=BLOCK+BLOCK, attn_temperature=X, head, "
        "input_noise=X, embedding_noise=X, dropout=X, random_labels (default: the guide that a "
        "bundled model comes with)",
    )
    add(
        "--interval",
        type=float,
        nargs="+",
        metavar="S",
        help="LO HI: guide only at noise levels above LO, up to and including HI; for several "
        "guides also LO HI for each",
    )
    add(
        "--kind",
        metavar="KIND[:OPTION=X,...]",
        help="another way of guiding, of weight W: apg, cfg_plus_plus, cfg_zero, feedback, "
        "frequency, magnitude_aware, rescaled, tangential, with numbers for its options, such as "
        "apg:eta=0.2,momentum=-0.5",
    )
    add = parser.add_argument_group("sampler").add_argument
    add(
        "--sampler",
        metavar="NAME",
        help="heun, or one that evaluates once a step: euler, euler_ancestral, adams_bashforth, "
        "dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, unipc; or adaptive_heun[:tolerance=X], "
        "whose steps each image has for itself (default: heun)",
    )
    add(
        "--schedule",
        metavar="NAME",
        help="the noise levels: rho, exponential, linear, cosine, flow (default: rho)",
    )
    add(
        "--steps",
        type=positive_integer,
        metavar="N",
        help="number of steps (default: 32)",
    )
    add(
        "--sigma-min",
        type=float,
        metavar="S",
        help="lowest noise level (default: 0.002)",
    )
    add(
        "--sigma-max",
        type=float,
        metavar="S",
        help="highest noise level (default: 80)",
    )
    add(
        "--rho",
        type=float,
        metavar="R",
        help="how strongly steps gather at low noise (default: 7)",
    )
    add(
        "--churn",
        type=float,
        nargs="+",
        metavar="C",
        help="S_churn [S_min S_max S_noise]: fresh noise at each step (default: 0 0 inf 1)",
    )
    add = parser.add_argument_group("running").add_argument
    add(
        "--batch-size",
        type=positive_integer,
        metavar="N",
        help="images at a time: speed and memory; images agree bit for bit where batches do, else "
        "to rounding (default: 64)",
    )
    add(
        "--device",
        default=None,
        metavar="D",
        help="cpu, cuda, cuda:1 ... (default: cuda if there is one; under torchrun, one for each "
        "process)",
    )
    add(
        "--compute-dtype",
        choices=("auto", "float32", "bfloat16", "int8", "float16", "float8_e4m3fn"),
        metavar="TYPE",
        help="what the networks multiply: 'auto' for the fastest type whose images are as good as "
        "float32's, or float32, bfloat16, int8 on a CPU, float32, bfloat16, float16, float8_e4m3fn "
        "on a GPU (default: float32, or float16 on a GPU for networks that say so)",
    )
    add(
        "--accept-licence",
        action="store_true",
        default=False,
        help="agree to the licence of published weights, CC BY-NC-SA 4.0, and download them",
    )
    add(
        "--quiet",
        action="store_true",
        default=False,
        help="no progress bar",
    )
    parser.set_defaults(run=run)


_FIELDS = [field.name for field in dataclasses.fields(Sampling)]
_ALSO_REPEATED = ("model", "guide")  # which may have moved meanwhile


def _with_preset(given: dict) -> dict:
    """The options that are given; where the model is the file of a preset, above what that says."""
    from .. import checkpoints

    if not given.get("model", "").endswith(".json"):
        return given
    found = checkpoints.read_preset(given.pop("model"), "sample")
    for several in ("guide", "guidance"):
        found[several] = None if found[several] is None else [found[several]]
    return {name: value for name, value in found.items() if value is not None} | given


def run(arguments: argparse.Namespace) -> int:
    """Sample and write the files; returns 0, or 130 if Ctrl-C came."""
    from .sampling import manifest, processes, run_job

    given = {name: getattr(arguments, name) for name in _FIELDS if hasattr(arguments, name)}
    with processes.speaking_once():
        if arguments.from_manifest is None:
            expected, samplings = None, [Sampling(**_with_preset(given))]
        else:
            others = [name for name in given if name not in _ALSO_REPEATED]
            if others:
                raise ValueError(
                    "--from-manifest must come without other options of sampling, got "
                    f"--{others[0].replace('_', '-')}; it says them all"
                )
            expected = manifest.read(arguments.from_manifest)
            samplings = manifest.samplings(expected, given.get("model"), given.get("guide"))
    running = run_job.Running(
        out=arguments.out,
        device=arguments.device,
        accept_licence=arguments.accept_licence,
        quiet=arguments.quiet,
    )
    return run_job.run_all(samplings, running, expected)
