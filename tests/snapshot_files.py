"""Snapshots as the reference implementation writes them, of nets of our own, for tests."""

import contextlib
import io
import pickle
import sys
import types

import torch

CANARY = (
    "import os\nopen(os.environ['AGF_CANARY'], 'a').write('executed')\n"
    "raise SystemExit('module_src was executed')\n"
)


class Persistent:
    """An object that pickles as the reference's persistent ones do."""

    def __init__(self, class_name, **state):
        self.class_name, self.state = class_name, {"_init_args": (), "_init_kwargs": {}, **state}
        self.meta = {"type": "class", "version": 6, "module_src": CANARY}

    def __reduce__(self):
        meta = {**self.meta, "class_name": self.class_name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def reference_modules():
    """The reference's modules by name, as far as pickling asks for them."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("only its name is needed")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    names = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield util.EasyDict
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def recorded(net, dtype=torch.float16, **options):
    """A `Precond` as `Persistent` objects; `options` stand for its recorded arguments."""

    def of(module, top=False):
        children = {k: of(child) for k, child in module._modules.items() if child is not None}
        if isinstance(module, torch.nn.ModuleDict):
            copy = torch.nn.ModuleDict()
            copy._modules = children
            return copy
        state = {
            "training": False,
            "_parameters": {
                k: torch.nn.Parameter(v.detach().to(dtype)) for k, v in module._parameters.items()
            },
            "_buffers": {k: v.to(dtype) for k, v in module._buffers.items()},
            "_non_persistent_buffers_set": set(),
            "_modules": children,
        }
        if top:
            state |= {k: net.config[k] for k in ("label_dim", "use_fp16", "sigma_data")}
            state["_init_kwargs"] = options or net.config
        return Persistent(type(module).__name__, **state)

    return of(net, top=True)


def dumps(tree, protocol=4):
    """The bytes of a pickle of a tree of `Persistent` objects, among `reference_modules()`."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol).dump(tree)
    return buffer.getvalue()


def snapshot(net, dtype=torch.float16, protocol=4, change=None, options=None, **entries):
    """The bytes of a snapshot of `net`, after `change` has seen its tree of objects."""
    with reference_modules() as easy_dict:
        ema = recorded(net, dtype, **(options or {}))
        tree = easy_dict(
            ema=ema,
            encoder=Persistent("StandardRGBEncoder"),
            loss_fn=Persistent("EDM2Loss", P_mean=-0.4, P_std=1.0, sigma_data=0.5),
            dataset_kwargs=easy_dict(class_name="training.dataset.ImageFolderDataset"),
        )
        tree.update(entries)
        if change is not None:
            change(tree)
        return dumps(tree, protocol)
