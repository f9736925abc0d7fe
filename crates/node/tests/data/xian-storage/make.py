#!/usr/bin/env python3
"""Makes the files beside it: storage directories as a Xian node writes them, and files that no node writes.

    pip install h5py==3.16.0 && python3 make.py

`earliest/` and `latest/` hold one state in the two layouts of HDF5, of which h5py writes the first unless told otherwise;
`export.json` is what Xian's export of it says. How keys and values are written follows `storage/driver.py`,
`storage/hdf5.py` and `storage/encoder.py` of xian-contracting, how they are exported `tools/export_state.py` of xian-core.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy

HERE = Path(__file__).parent
ACCOUNT = "ab" * 32
OTHER = "0155b1cab2bc9e626b5d05be6354d2972f8223dca5f0872fede68cce7582f535"
CODE = "balances = Hash(default_value=0)\n\n@export\ndef transfer(amount: float, to: str):\n    pass\n"

# Key and value; None is a key that was deleted, a text behind RAW stands in the file as it is.
RAW = object()
STATE = [
    ("currency.__code__", CODE),
    ("currency.__compiled__", {"__bytes__": "e300" * 200}),
    ("currency.__owner__", ""),
    ("currency.__submitted__", {"__time__": [2025, 3, 6, 23, 52, 47, 0]}),
    ("currency.__developer__", OTHER),
    (f"currency.balances:{ACCOUNT}", {"__fixed__": "99.5"}),
    (f"currency.balances:{OTHER}", 7),
    (f"currency.balances:{ACCOUNT}:con_dex", {"__fixed__": "1E-7"}),
    ("currency.balances:gone", None),
    ("currency.metadata:token_name", "XIAN"),
    ("currency.metadata:tags", ["a", {"b": [1, None, True]}]),
    ("con_odd.big", {"__big_int__": "123456789012345678901234567890"}),
    ("con_odd.delta", {"__delta__": [1824, 0]}),
    ("con_odd.bytes", {"__bytes__": "00ff"}),
    ("con_odd.escapes", "\x00\x1f\"\\/\b\f\n\r\té😀\u2028"),
    ("con_odd.ключ:鍵:🔑", {"имя": "値"}),
    ("con_odd.true", True),
    ("con_odd.empty:text", ""),
    ("con_odd.empty:list", []),
    ("con_odd.long", "x" * 70_000),
    ("con_odd.dot.in:a.name", 1),
    ("con_odd.null", (RAW, "null")),
    ("con_odd.float", (RAW, "0.78")),
    ("con_empty.was", None),
]
NONCES = [(OTHER, 12), (ACCOUNT, 0)]


def encode(value):
    return json.dumps(value, separators=(",", ":"))


def write(file, group, text, block=-1):
    """As `hdf5.set` does: the group if it is not there, then its attributes, anew."""
    group = file.require_group(group)
    for name, value in (("value", text), ("block", block)):
        if name in group.attrs:
            del group.attrs[name]
        if value is not None:
            group.attrs[name] = value


def place(key):
    """As `Driver.__parse_key` does."""
    contract, variable = key.split(".", 1)
    return contract, variable.replace(":", "/")


def storage(directory, libver):
    shutil.rmtree(directory, ignore_errors=True)
    for below in ("contract_state", "run_state"):
        (directory / below).mkdir(parents=True)
    files = {}

    def put(state, name, group, text, block):
        if name not in files:
            files[name] = h5py.File(directory / state / name, "a", libver=libver)
        write(files[name], group, text, block)

    for number, (key, value) in enumerate(STATE):
        name, group = place(key)
        block = 1_741_305_167_000_000_000 + number if number % 2 else -1
        put("contract_state", name, group, "1", -1)  # a value before, as most keys have
        text = value[1] if isinstance(value, tuple) else None if value is None else encode(value)
        put("contract_state", name, group, text, block)
    for account, nonce in NONCES:
        put("run_state", "__n", f"{account}/", encode(nonce), -1)
        put("run_state", "__pn", f"{account}/", encode(1_000), -1)
    for file in files.values():
        file.close()
    latest = {"hash": "00FF" * 16, "height": 4_711}
    (directory / "__latest_block.json").write_text(json.dumps(latest))


def export():
    """As `export_state.py` does, without a founder's key."""
    kept = [(key, value) for key, value in STATE if not key.startswith("currency.__compiled__")]
    kept = [(key, json.loads(value[1]) if isinstance(value, tuple) else value) for key, value in kept]
    entries = sorted(([key, value] for key, value in kept if value is not None), key=lambda entry: entry[0])
    document = {
        "hash": ("00FF" * 16).lower(),
        "number": 4_711,
        "origin": {"signature": "", "sender": ""},
        "genesis": [{"key": key, "value": value} for key, value in entries],
        "nonces": [{"key": key, "value": value} for key, value in sorted(NONCES)],
    }
    (HERE / "export.json").write_text(encode(document) + "\n")


def hostile(name, libver, fill):
    for layout, libver in libver.items():
        path = HERE / "hostile" / f"{name}-{layout}.h5"
        with h5py.File(path, "w", libver=libver) as file:
            fill(file)


OLD, NEW = {"earliest": "earliest"}, {"latest": "latest"}
BOTH = {**OLD, **NEW}


def circle(file):
    write(file, "a/b", "1")
    file["a/b/c"] = file["a"]


def own_parent(file):
    write(file, "a", "1")
    file["a/again"] = file["/"]


def twice(file):
    write(file, "a", "1")
    file["b"] = file["a"]


def soft(file):
    write(file, "a", "1")
    file["b"] = h5py.SoftLink("/a")


def dangling(file):
    write(file, "a", "1")
    file["b"] = h5py.SoftLink("/nowhere")


def external(file):
    write(file, "a", "1")
    file["b"] = h5py.ExternalLink("../earliest/contract_state/currency", "/balances")


def deep(file):
    # Xian's keys have at most 1,024 bytes, names of the state 4,096.
    group = file
    for _ in range(20):
        group = group.create_group("n" * 204)
    write(group, "end", "1")


def name(bytes_):
    def fill(file):
        gid = h5py.h5g.create(file.id, bytes_)
        h5py.Group(gid).attrs["value"] = "1"

    return fill


def attribute(name, value, **how):
    def fill(file):
        write(file, "a", "1")
        file["a"].attrs.create(name, value, **how)

    return fill


def dataset(file):
    write(file, "a", "1")
    file["a/d"] = numpy.arange(4)


def datatype(file):
    write(file, "a", "1")
    file["a/t"] = numpy.dtype("<i4")


def dense(file):
    for number in range(40):
        write(file, f"balances/{number}", encode(number))
    for number in range(12):
        file["balances/0"].attrs[f"more{number}"] = number


def main():
    shutil.rmtree(HERE / "hostile", ignore_errors=True)
    (HERE / "hostile").mkdir()
    storage(HERE / "earliest", "earliest")
    storage(HERE / "latest", "latest")
    export()
    utf8 = h5py.string_dtype("utf-8")
    for what, libver, fill in [
        ("circle", BOTH, circle),
        ("own-parent", BOTH, own_parent),
        ("twice", BOTH, twice),
        ("soft", BOTH, soft),
        ("dangling", BOTH, dangling),
        ("external", NEW, external),
        ("deep", BOTH, deep),
        ("name-not-utf8", BOTH, name(b"\xff\xfe")),
        ("name-colon", BOTH, name(b"a:b")),
        ("value-not-utf8", OLD, attribute("value", b"\"\xff\"", dtype=utf8)),
        ("value-not-json", OLD, attribute("value", "{'a': 1}")),
        ("value-nan", OLD, attribute("value", "NaN")),
        ("value-twice", OLD, attribute("value", '{"a":1,"a":2}')),
        ("value-nested", OLD, attribute("value", "[" * 200 + "]" * 200)),
        ("value-integer", OLD, attribute("value", 1)),
        ("value-float", OLD, attribute("value", 0.5)),
        ("value-list", OLD, attribute("value", ["1"], dtype=utf8)),
        ("value-null", OLD, attribute("value", h5py.Empty(utf8))),
        ("value-fixed", OLD, attribute("value", numpy.bytes_(b'"fixed"'))),
        ("value-opaque", OLD, attribute("value", numpy.void(b"\x00\x01"))),
        ("block-text", OLD, attribute("block", "7")),
        ("block-float", OLD, attribute("block", 0.5)),
        ("block-list", OLD, attribute("block", [1, 2])),
        ("attribute-other", OLD, attribute("author", "me")),
        ("dataset", BOTH, dataset),
        ("datatype", BOTH, datatype),
        ("dense", NEW, dense),
    ]:
        hostile(what, libver, fill)


if __name__ == "__main__":
    main()
