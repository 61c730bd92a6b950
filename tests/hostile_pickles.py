"""Pickles that are after something: code, time or memory. Assembled opcode by opcode."""

import io
import pickle
import struct
import zipfile

import numpy as np
import torch
from golden import DATA

PROTO, STOP, MARK, TUPLE, REDUCE, BUILD = b"\x80\x04", b".", b"(", b"t", b"R", b"b"
CODE = "open(__import__('os').environ['AGF_CANARY'], 'a').write('executed')"
SHELL = 'touch "$AGF_CANARY"'


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def binary(data):
    return b"\x8e" + struct.pack("<Q", len(data)) + data


def integer(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def stack_global(name):
    module, _, name = name.rpartition(".")
    return text(module) + text(name) + b"\x93"


def line_global(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(name, *arguments, how=stack_global):
    return how(name) + MARK + b"".join(arguments) + TUPLE + REDUCE


def file(*parts):
    return PROTO + b"".join(parts) + STOP


def dictionary(**values):
    return b"}" + MARK + b"".join(text(k) + v for k, v in values.items()) + b"u"


def persistent(name, state, **changed):
    meta = {"type": text("class"), "version": integer(6), "module_src": text(CODE)}
    meta |= {"class_name": text(name), "state": state} | changed
    return call("torch_utils.persistence._reconstruct_persistent_obj", dictionary(**meta))


def module(class_name, parameters=b"}", modules=b"}", **state):
    return persistent(
        class_name, dictionary(_parameters=parameters, _buffers=b"}", _modules=modules, **state)
    )


def net(weight, **options):
    """A snapshot with one weight, which is as good as any to be read."""
    return file(dictionary(ema=module("Precond", parameters=dictionary(weight=weight), **options)))


def stream(storage, numbers=b"", listed=None, system=True, magic=None):
    """A stream as `torch.save` wrote it before it wrote archives."""
    magic = 0x1950A86A20F9469CFC6C if magic is None else magic
    listed = b"]" + text("0") + b"a" if listed is None else listed
    little = b"\x88" if system else b"\x89"
    parts = [integer(magic), integer(1001), dictionary(little_endian=little), storage, listed]
    return b"".join(b"\x80\x02" + part + STOP for part in parts) + numbers


def storage(count=4, kind="torch.FloatStorage", view=b"N", how=line_global):
    parts = text("storage") + how(kind) + text("0") + text("cpu") + integer(count) + view
    return MARK + parts + TUPLE + b"Q"


def numbers(count=4):
    return struct.pack("<q", count) + bytes(4 * count)


def loaded(data):
    return call("torch.storage._load_from_bytes", binary(data))


def tensor(data=None, offset=0, shape=(4,), strides=(1,), hooks=b"N", how=stack_global):
    def sizes(values):
        return MARK + b"".join(map(integer, values)) + TUPLE

    data = loaded(stream(storage(), numbers())) if data is None else data
    rest = integer(offset) + sizes(shape) + sizes(strides) + b"\x89" + hooks
    return call("torch._utils._rebuild_tensor_v2", data, rest, how=how)


CALLS = {
    "os.system": [text(SHELL)],
    "posix.system": [text(SHELL)],
    "nt.system": [text(SHELL)],
    "os.popen": [text(SHELL)],
    "os.execlp": [text("touch"), text("touch"), text("canary")],
    "subprocess.Popen": [text(SHELL)],
    "subprocess.call": [text(SHELL)],
    "subprocess.check_output": [text(SHELL)],
    "builtins.eval": [text(CODE)],
    "builtins.exec": [text(CODE)],
    "__builtin__.eval": [text(CODE)],
    "__builtin__.apply": [text(CODE)],
    "builtins.compile": [text(CODE), text("f"), text("exec")],
    "builtins.__import__": [text("antigravity")],
    "builtins.getattr": [text("a"), text("__class__")],
    "builtins.setattr": [text("a"), text("b"), text("c")],
    "builtins.open": [text("canary"), text("w")],
    "builtins.breakpoint": [],
    "builtins.input": [],
    "builtins.type": [text("T"), b")", b"}"],
    "builtins.object": [],
    "builtins.globals": [],
    "builtins.vars": [],
    "builtins.map": [text("f"), b"]"],
    "builtins.print": [text("hello")],
    "builtins.bytearray": [integer(1 << 40)],
    "builtins.list": [],
    "builtins.range": [integer(1 << 60)],
    "functools.partial": [stack_global("torch.float16")],
    "functools.reduce": [stack_global("torch.float16"), b"]"],
    "operator.attrgetter": [text("system")],
    "operator.methodcaller": [text("system"), text(SHELL)],
    "operator.itemgetter": [integer(0)],
    "_operator.attrgetter": [text("system")],
    "types.FunctionType": [],
    "types.CodeType": [],
    "marshal.loads": [binary(b"")],
    "pickle.loads": [binary(b"N.")],
    "_pickle.loads": [binary(b"N.")],
    "pickle.Unpickler": [],
    "shelve.open": [text("x")],
    "importlib.import_module": [text("antigravity")],
    "runpy._run_code": [text(CODE), b"}"],
    "runpy.run_path": [text("x.py")],
    "timeit.timeit": [text(CODE)],
    "cProfile.run": [text(CODE)],
    "pdb.run": [text(CODE)],
    "bdb.Bdb.run": [text(CODE)],
    "code.InteractiveInterpreter": [],
    "pty.spawn": [text("sh")],
    "platform.popen": [text(SHELL)],
    "asyncio.unix_events._UnixSubprocessTransport._start": [],
    "multiprocessing.util.spawnv_passfds": [],
    "shutil.rmtree": [text("canary")],
    "socket.create_connection": [],
    "urllib.request.urlopen": [text("file:///etc/hostname")],
    "ctypes.CDLL": [text("libc.so.6")],
    "_ctypes.dlopen": [text("libc.so.6")],
    "webbrowser.open": [text("x")],
    "sys.exit": [],
    "os._exit": [integer(3)],
    "signal.raise_signal": [integer(9)],
    "codecs.encode": [text("x"), text("rot13")],
    "_codecs.encode": [text("x"), text("latin1")],
    "copyreg._reconstructor": [stack_global("torch.float16")],
    "copy_reg._reconstructor": [],
    "copyreg.add_extension": [text("os"), text("system"), integer(1)],
    "copyreg.__newobj__": [stack_global("torch.float16")],
    "collections.defaultdict": [stack_global("torch.float16")],
    "collections.namedtuple": [text("T"), text("a")],
    "collections.OrderedDict.fromkeys": [b"]"],
    "torch.load": [text("x")],
    "torch.hub.load": [text("x"), text("y")],
    "torch.jit.load": [text("x")],
    "torch.serialization.load": [text("x")],
    "torch.package.PackageImporter": [text("x")],
    "torch._utils._rebuild_from_type_v2": [],
    "torch._utils._rebuild_qtensor": [],
    "torch._tensor._rebuild_from_type_v2": [],
    "torch.utils.data.datapipes.utils.decoder.basichandlers": [],
    "torch.utils._config_module.ConfigModule.load_config": [],
    "torch.storage.UntypedStorage": [integer(1 << 50)],
    "torch.FloatStorage": [integer(1 << 50)],
    "torch.zeros": [integer(1 << 50)],
    "torch.empty": [integer(1 << 50)],
    "torch.float16": [text(SHELL)],
    "torch.nn.modules.container.Sequential.__init__": [],
    "torch.nn.modules.linear.Linear": [integer(1), integer(1)],
    "torch_utils.persistence.import_hook": [],
    "torch_utils.persistence._src_to_module": [text(CODE)],
    "dnnlib.util.open_url": [text("file:///etc/hostname")],
    "dnnlib.util.call_func_by_name": [text("os.system"), text(SHELL)],
    "dnnlib.util.EasyDict.__init__": [],
    "numpy.load": [text("x")],
    "numpy.fromfile": [text("x")],
    "numpy.zeros": [integer(1 << 50)],
    "numpy.testing._private.utils.runstring": [text(CODE), b"}"],
    "numpy.f2py.crackfortran.myeval": [text(CODE)],
    "numpy.ndarray": [MARK + integer(1 << 50) + TUPLE],
    "numpy.memmap": [text("canary")],
    "training.networks_edm2.Precond": [],
    "__main__.Net": [],
}


def calls():
    """Each call by itself, inside of a network, of a storage's stream, and by other opcodes."""
    for name, arguments in CALLS.items():
        yield f"call {name}", file(call(name, *arguments))
        yield f"line {name}", net(call(name, *arguments, how=line_global))
        inner = b"\x80\x02" + call(name, *arguments, how=line_global) + STOP
        yield f"stream {name}", net(loaded(inner))
    for name in ("os.system", "builtins.eval"):
        module, _, attribute = name.rpartition(".")
        argument = text(CODE if attribute == "eval" else SHELL)
        yield f"new {name}", file(stack_global(name), argument, b"\x85\x81")
        yield f"new with names {name}", file(stack_global(name), argument, b"\x85}\x92")
        yield f"instance {name}", file(MARK, argument, f"i{module}\n{attribute}\n".encode())
        yield f"object {name}", file(MARK, stack_global(name), argument, b"o")
        yield f"bare {name}", file(stack_global(name))
        yield f"protocol 0 {name}", f"c{module}\n{attribute}\n(S'x'\ntR.".encode()
        yield f"encoder {name}", file(dictionary(ema=b"N", encoder=call(name, argument)))
        yield f"hook {name}", net(tensor(hooks=call(name, argument)))
        yield f"archive {name}", net(loaded(archive(b"\x80\x02" + call(name, argument) + STOP)))
        yield f"after {name}", file(b"N", b".", call(name, argument))
        yield f"twice {name}", file(b"N") + file(call(name, argument))


def archive(pickled, entries=1, compression=zipfile.ZIP_STORED, data=bytes(16), **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for index in range(entries):
            file.writestr(f"archive/data/{index}", data)
        for name, value in more.items():
            file.writestr(f"archive/{name}", value)
    return buffer.getvalue()


def structures():
    """What no call is needed for."""
    one = stream(storage(), numbers())
    yield "extension 1", file(b"\x82\x01")
    yield "extension 2", file(b"\x83\x01\x00")
    yield "extension 4", file(b"\x84\x01\x00\x00\x00")
    yield "persistent id", file(text("x"), b"Q")
    yield "persistent id of protocol 0", file(b"Px\n")
    yield "next buffer", file(b"\x97")
    yield "read-only buffer", file(b"N\x98")
    yield "memo without", file(b"h\x07")
    yield "memo far", file(b"Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff")
    yield "memo of nothing", file(b"\x94")
    yield "memo of a mark", file(b"(\x94")
    yield "mark as a value", file(b"(2")
    yield "tuple of a mark", file(b"N(N\x86")
    yield "nothing", file()
    yield "two values", file(b"NN")
    yield "pop of nothing", file(b"0")
    yield "build of nothing", file(b"Nb")
    yield "build of a dictionary", file(b"}}b")
    yield "build of a text", file(text("a") + dictionary(__class__=b"N") + b"b")
    yield "build of a symbol", file(stack_global("torch.float16") + dictionary(x=b"N") + b"b")
    yield "items of a list", file(b"](NNu")
    yield "items of odd number", file(b"}(Nu")
    yield "append to a dictionary", file(b"}Na")
    yield "unhashable key", file(b"}]Ns")
    yield "float as a key", file(b"}G" + bytes(8) + b"Ns")
    yield "global of numbers", file(b"NN\x93")
    yield "global without an end", file(b"c" + b"a" * 5000)
    yield "text that is none", file(b"X\x02\x00\x00\x00\xff\xff")
    yield "huge text", file(b"\x8d" + struct.pack("<Q", 1 << 62) + b"a")
    yield "huge text 4", file(b"X\xff\xff\xff\xff")
    yield "huge bytes", file(b"\x8e" + struct.pack("<Q", 1 << 62))
    yield "huge bytes 4", file(b"B\xff\xff\xff\xff")
    yield "huge bytearray", file(b"\x96" + struct.pack("<Q", 1 << 62))
    yield "huge frame", file(b"\x95" + struct.pack("<Q", (1 << 64) - 1) + b"N")
    yield "huge long", file(b"\x8b\xff\xff\xff\x7f")
    yield "negative long", file(b"\x8b\xff\xff\xff\xff")
    yield "long in decimals", file(b"L" + b"9" * 200_000 + b"L\n")
    yield "integer in decimals", file(b"I" + b"9" * 200_000 + b"\n")
    yield "protocol 9", b"\x80\x09N."
    yield "protocol 1", b"\x80\x01N."
    deep = 200_000
    yield "deep list", file(b"]" * deep, b"a" * (deep - 1))
    yield "deep tuple", file(b")", b"\x85" * deep)
    yield "deep tuple as a key", file(b"})", b"\x85" * deep, b"Ns")
    yield "deep tuple in a set", file(b"\x8f()", b"\x85" * deep, b"\x90")
    yield "deep dictionary", file(b"}X\x01\x00\x00\x00a" * deep, b"N", b"s" * deep)
    yield "deep marks", file(b"(" * deep)
    yield "dictionaries", file(b"}" * 100_000)
    yield "sets", file(b"\x8f" * 100_000)
    yield "lists", file(b"(" + b"]" * 300_000 + b"l")
    yield "duplicates", file(b"N" + b"2" * 600_000)
    yield "memo", file(b"N" + b"\x94" * 300_000)
    yield "pushed and dropped", file(b"N0" * 600_000 + b"N")
    lists = b"".join(b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"l\x94" for i in range(200))
    yield "doubled lists", file(dictionary(ema=b"N", more=b"]\x94" + lists))
    yield "itself as a list", file(b"]\x94h\x00a")
    yield "itself as a network", file(b"}\x94" + text("ema") + b"h\x00s")
    facts = b"}\x94(" + text("a") + b"h\x00u"
    yield "facts without an end", file(dictionary(ema=b"N", facts=facts))
    own = b"}\x94" + text("_modules") + b"}" + text("a")
    own += stack_global("torch.nn.modules.container.Sequential") + b")\x81" + b"h\x00bss"
    yield "a layer within itself", net(b"N", x=own)
    yield "a network without a state", file(persistent("Precond", b"N"))
    yield "a network without layers", file(persistent("Precond", b"}"))
    yield "another version", file(persistent("Precond", b"}", version=integer(7)))
    yield "another type", file(persistent("Precond", b"}", type=text("function")))
    yield "a class without a name", file(persistent("Precond", b"}", class_name=b"N"))
    yield (
        "a meta that is none",
        file(call("torch_utils.persistence._reconstruct_persistent_obj", text(CODE))),
    )
    container = stack_global("torch.nn.modules.container.Sequential")
    yield "a container with arguments", net(container + text(SHELL) + b"\x85\x81")
    yield "a weight as a text", net(text("a"))
    yield "a weight as a number", net(integer(3))
    yield "storage of a text", net(call("torch.storage._load_from_bytes", text("x")))
    yield "storage of nothing", net(call("torch.storage._load_from_bytes"))
    yield "a parameter of a text", net(call("torch._utils._rebuild_parameter", text("x")))
    yield "stream with a magic", net(loaded(stream(storage(), numbers(), magic=3)))
    yield "stream of big numbers", net(loaded(stream(storage(), numbers(), system=False)))
    yield "stream of another key", net(loaded(stream(storage(), numbers(), listed=b"]")))
    yield "stream that ends", net(loaded(one[:-1]))
    yield "stream that goes on", net(loaded(one + b"x"))
    yield "stream of more numbers", net(loaded(stream(storage(1 << 40), numbers())))
    yield "stream of fewer numbers", net(loaded(stream(storage(2), numbers())))
    yield "stream of minus one", net(loaded(stream(storage(-1), numbers())))
    yield "stream of minus one twice", net(loaded(stream(storage(-1), struct.pack("<q", -1))))
    yield "stream with a view", net(loaded(stream(storage(view=text("x")), numbers())))
    yield "stream of a kind", net(loaded(stream(storage(kind="torch.ComplexStorage"), numbers())))
    yield "stream of a stream", net(loaded(stream(loaded(one), numbers())))
    yield "stream of nothing", net(loaded(b""))
    yield "stream of a page", net(loaded(b"<html>"))
    yield "archive of nothing", net(loaded(b"PK\x03\x04"))
    good = b"\x80\x02" + storage() + STOP
    compressed = archive(good, compression=zipfile.ZIP_DEFLATED, data=bytes(1 << 20))
    yield "archive that is compressed", net(loaded(compressed))
    yield "archive of many", net(loaded(archive(good, entries=30_000, data=b"")))
    yield "archive of another size", net(loaded(archive(good, data=bytes(15))))
    yield "archive without numbers", net(loaded(archive(good, entries=0)))
    yield "archive of big numbers", net(loaded(archive(good, byteorder="big")))
    yield "archive without a pickle", net(loaded(archive(good).replace(b"data.pkl", b"data.plk")))
    yield (
        "archives again",
        net(loaded(archive(good)) + b"0" + (binary(archive(good)) + b"\x94\x850") * 100 + b"N"),
    )
    many = stack_global("torch.storage._load_from_bytes") + b"\x94" + binary(archive(good))
    yield "an archive read often", file(many + b"\x85\x940" + b"h\x00h\x01R0" * 100_000 + b"N")
    yield "tensor beyond", net(tensor(offset=1))
    yield "tensor before", net(tensor(offset=-1))
    yield "tensor of more", net(tensor(shape=(5,)))
    yield "tensor of minus", net(tensor(shape=(-4,)))
    yield "tensor of a bit", net(tensor(shape=(1 << 62, 1 << 62), strides=(0, 0)))
    yield "tensor repeated", net(tensor(shape=(4, 1 << 30), strides=(1, 0)))
    yield "tensor with gaps", net(tensor(shape=(2,), strides=(2,)))
    yield "tensor of many dimensions", net(tensor(shape=(1,) * 100, strides=(1,) * 100))
    yield "tensor of other strides", net(tensor(shape=(4,), strides=(1, 1)))
    yield "tensor of no storage", net(tensor(data=b"]"))
    yield "tensor without arguments", net(call("torch._utils._rebuild_tensor_v2"))
    core = "numpy.core.multiarray"
    empty = call(f"{core}._reconstruct", stack_global("numpy.ndarray"), integer(0), b"N")
    kind = call("numpy.dtype", text("f4"), b"\x89", b"\x88")

    def array(kind, shape=b"K\x01\x85", data=b"C\x04abcd"):
        return empty + MARK + integer(1) + shape + kind + b"\x89" + data + TUPLE + BUILD

    def metric(mu):
        return file(dictionary(fid=dictionary(mu=mu, sigma=mu)))

    yield "array of objects", metric(array(call("numpy.dtype", text("O"))))
    yield "array of records", metric(array(call("numpy.dtype", text("V8"))))
    yield "array of a huge type", metric(array(call("numpy.dtype", text("V1000000000"))))
    yield "array of text", metric(array(call("numpy.dtype", text("U4"))))
    yield "array of fields", metric(array(call("numpy.dtype", text("i4,f8"))))
    fields = MARK + integer(3) + text("<") + b"NN}" + integer(-1) + integer(-1) + b"K\x00" + TUPLE
    yield "array of named fields", metric(array(kind + fields + BUILD))
    yield "array of a list", metric(array(kind, data=b"]"))
    yield "array of more", metric(array(kind, shape=integer(1 << 39) + b"\x85"))
    yield "array of minus", metric(array(kind, shape=integer(-1) + b"\x85"))
    yield (
        "array of another class",
        metric(call(f"{core}._reconstruct", stack_global("torch.float16"), integer(0), b"N")),
    )
    yield "array of no state", metric(empty)
    yield (
        "scalar of an object",
        metric(call(f"{core}.scalar", call("numpy.dtype", text("O")), binary(b""))),
    )
    yield (
        "object array of NumPy's",
        pickle.dumps({"fid": {"mu": np.array([print], object), "sigma": 0}}, 4),
    )


def pages():
    """What is no pickle."""
    yield "page", b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>"
    yield "page with a space", b"\n  <html></html>"
    yield "empty", b""
    yield "text", b"not a pickle"
    yield "one byte", b"\x80"
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    yield "zeros", bytes(1000)
    yield "gzip", b"\x1f\x8b\x08\x00" + bytes(100)
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    yield "saved by torch", buffer.getvalue()


def truncated():
    """A good snapshot that ends too early, at many places."""
    data = (DATA / "pixels-labelled.pkl").read_bytes()
    for part in range(40):
        length = len(data) * part // 40 + part
        yield f"cut at {length}", data[:length]
    yield "cut by one", data[:-1]
    yield "more at the end", data + b"x"


HOSTILE = dict([*calls(), *structures(), *pages(), *truncated()])
