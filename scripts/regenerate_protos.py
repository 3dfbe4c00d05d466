"""Writes `src/outputd/_proto/` from `protos/`; changes no other file. A developer command, called by `make proto`.

Needs the dependency group `proto` of pyproject.toml, at exactly the versions pinned there. Each .proto becomes

* `{name}_pb2.py`: its serialized descriptor, defined in the private pool (`outputd._proto._pool` says why), and
* `{name}_pb2.pyi`: what type checkers and people read,

and `SOURCES.json` records the checksums of what was read and what was written, so that a test can tell without a protobuf
compiler whether somebody forgot to run this command or edited its results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files as files_of
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = REPOSITORY / "protos"
GENERATED: Final = REPOSITORY / "src" / "outputd" / "_proto"
GENERATORS: Final = ("grpcio-tools", "mypy-protobuf")

# `from google.rpc import status_pb2 as _status_pb2`: wherever protoc thinks the module lies, ours is in _proto.
_STUB_IMPORT: Final = re.compile(r"^from [\w.]+ import (\w+_pb2) as", re.MULTILINE)
_WIDTH: Final = 110


def main(arguments: list[str] | None = None) -> int:
    """Regenerate. Exit code 1, and nothing written: other generators than those pinned, or an error in a .proto."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--into", type=Path, default=GENERATED, metavar="DIR", help="write there (default: %(default)s)"
    )
    into: Path = parser.parse_args(arguments).into
    installed = {f"{name}=={version(name)}" for name in GENERATORS}
    pinned = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]["proto"])
    if installed != pinned:
        # Another version writes other stubs, with imports that `_STUB_IMPORT` was not made for.
        print(
            f"this environment has {sorted(installed)}; pyproject.toml pins {sorted(pinned)}", file=sys.stderr
        )
        return 1
    try:
        files = generate()
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr, end="")
        return 1
    into.mkdir(parents=True, exist_ok=True)
    for stale in [*into.glob("*_pb2.py"), *into.glob("*_pb2.pyi")]:
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (into / name).write_text(text, encoding="utf-8")
    print(f"{len(files)} files written to {into}")
    return 0


def generate() -> dict[str, str]:
    """The text of every generated file by its name in the package."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch, "descriptors.binpb")
        paths = (f"--proto_path={PROTOS}", f"--proto_path={files_of('grpc_tools') / '_proto'}")
        _protoc(*paths, "--include_imports", f"--descriptor_set_out={described}", sources=sources)
        everything = FileDescriptorSet.FromString(described.read_bytes()).file
        well_known = [file.name for file in everything if file.name not in sources]
        _protoc(*paths, f"--mypy_out=quiet:{scratch}", sources=sources)
        # From descriptors instead of sources, for descriptors carry no comments: these are not ours to repeat.
        _protoc(f"--descriptor_set_in={described}", f"--mypy_out=quiet:{scratch}", sources=well_known)

        files: dict[str, str] = {}
        for file in everything:
            module = _module(file.name)
            assert f"{module}.py" not in files, f"two .proto files would become {module}"
            files[f"{module}.py"] = _code(file, is_ours=file.name in sources)
            stub = Path(scratch, file.name.removesuffix(".proto") + "_pb2.pyi").read_text(encoding="utf-8")
            files[f"{module}.pyi"] = _STUB_IMPORT.sub(r"from outputd._proto import \1 as", stub)

    record = {
        "generators": {name: version(name) for name in GENERATORS},
        "sources": {name: _sha256((PROTOS / name).read_bytes()) for name in sources},
        "generated": {name: _sha256(files[name].encode()) for name in sorted(files)},
    }
    return files | {"SOURCES.json": json.dumps(record, indent=2) + "\n"}


def _protoc(*options: str, sources: Iterable[str]) -> None:
    # protoc looks for protoc-gen-mypy on PATH; it lies beside the interpreter of the same environment.
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    }
    # Not `-m grpc_tools.protoc`: that would add its own proto_path, which protoc prefers to --descriptor_set_in.
    program = "import sys; from grpc_tools import protoc; sys.exit(protoc.main(sys.argv))"
    command = [sys.executable, "-c", program, *options, *sources]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def _module(proto: str) -> str:
    return proto.rpartition("/")[2].removesuffix(".proto") + "_pb2"


def _code(file: FileDescriptorProto, *, is_ours: bool) -> str:
    imports = [
        f"from outputd._proto import {_module(name)} as _{_module(name)}\n" for name in file.dependency
    ]
    if is_ours:
        serialized = _literal(file.SerializeToString(deterministic=True))
        origin = f"protos/{file.name}"
    else:
        imports.append(f"from google.protobuf import {_module(file.name)} as _well_known\n")
        serialized = "_well_known.DESCRIPTOR.serialized_pb"
        origin = f"the protobuf package's {file.name}"
    return (
        f'"""Generated by scripts/regenerate_protos.py from {origin}; do not edit."""\n\n'
        f"{''.join(imports)}from outputd._proto._pool import define as _define\n\n"
        f"DESCRIPTOR = _define({serialized}, globals())\n"
    )


def _literal(data: bytes) -> str:
    """A bytes literal over many lines, so that a change of one field is a change of a few lines."""
    lines = [
        repr(piece) for piece in re.findall(rb"[^\n]{0,%d}\n?" % (_WIDTH // 2), data, re.DOTALL) if piece
    ]
    return "(\n" + "".join(f"    {line}\n" for line in lines) + ")"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
