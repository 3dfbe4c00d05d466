"""The generated messages are those of `protos/`, and nobody wrote into them. Needs no protobuf compiler."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor

REPOSITORY = Path(__file__).parents[2]
PROTOS = REPOSITORY / "protos"
PACKAGE = REPOSITORY / "src" / "outputd" / "_proto"
RECORD = json.loads((PACKAGE / "SOURCES.json").read_text())
SOURCES = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
AGAIN = "run `python scripts/regenerate_protos.py`"


def checksums(root: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}


def test_nothing_in_protos_changed_since() -> None:
    assert checksums(PROTOS, SOURCES) == RECORD["sources"], AGAIN


def test_nobody_edited_what_was_generated() -> None:
    names = sorted(path.name for path in PACKAGE.iterdir() if path.is_file() and "_pb2." in path.name)
    assert checksums(PACKAGE, names) == RECORD["generated"], AGAIN


def test_it_was_generated_by_the_versions_that_are_pinned() -> None:
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    pinned = {f"{name}=={number}" for name, number in RECORD["generators"].items()}
    assert pinned == set(groups["proto"]), AGAIN


@pytest.mark.parametrize("source", SOURCES)
def test_every_line_of_a_proto_is_in_its_descriptor(source: str) -> None:
    """Holds even where somebody made the checksums agree."""
    text = re.sub(r"//.*", "", (PROTOS / source).read_text())
    written = re.findall(r"(\w+) = (\d+)(?: \[deprecated = true\])?;", text)
    module = importlib.import_module("outputd._proto." + Path(source).stem + "_pb2")
    described: list[tuple[str, str]] = []

    def values(enum: EnumDescriptor) -> None:
        described.extend((value.name, str(value.number)) for value in enum.values)

    def fields(message: Descriptor) -> None:
        if message.GetOptions().map_entry:
            return
        described.extend((field.name, str(field.number)) for field in message.fields)
        for enum in message.enum_types:
            values(enum)
        for nested in message.nested_types:
            fields(nested)

    for message in module.DESCRIPTOR.message_types_by_name.values():
        fields(message)
    methods = [
        method.name for service in module.DESCRIPTOR.services_by_name.values() for method in service.methods
    ]
    assert sorted(described) == sorted(written), AGAIN
    assert methods == re.findall(r"\brpc (\w+)", text), AGAIN


@pytest.mark.parametrize("module", [path.stem for path in sorted(PACKAGE.glob("*_pb2.py"))])
def test_stubs_name_the_messages_that_modules_have(module: str) -> None:
    stub = ast.parse((PACKAGE / f"{module}.pyi").read_text())
    classes = {node.name for node in stub.body if isinstance(node, ast.ClassDef)}
    descriptor = importlib.import_module(f"outputd._proto.{module}").DESCRIPTOR
    assert classes == set(descriptor.message_types_by_name), AGAIN


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    for name, number in RECORD["generators"].items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "not installed"
        if installed != number:
            pytest.skip(f"{name} is {installed}; the group `proto` pins {number}")
    script = REPOSITORY / "scripts" / "regenerate_protos.py"
    subprocess.run([sys.executable, script, "--into", tmp_path], check=True, capture_output=True, timeout=60)
    names = ["SOURCES.json", *RECORD["generated"]]
    assert checksums(tmp_path, names) == checksums(PACKAGE, names), AGAIN


OTHERS = """
from google.protobuf import descriptor_pb2, descriptor_pool, any_pb2 as their_any
pool = descriptor_pool.Default()
for path, package, name in [
    ("google/rpc/status.proto", "google.rpc", "Status"),
    ("elsewhere.proto", "build.bazel.remote.execution.v2", "Digest"),
]:
    file = descriptor_pb2.FileDescriptorProto(name=path, package=package, syntax="proto3")
    file.message_type.add(name=name).field.add(name="other", number=7, type=9, label=1)
    pool.AddSerializedFile(file.SerializeToString())

from outputd._proto import any_pb2, bazel_output_service_pb2, bazel_output_service_rev2_pb2 as rev2, status_pb2
locator = rev2.FileArtifactLocator()
locator.digest.hash = "abc"
artifact = bazel_output_service_pb2.StageArtifactsRequest.Artifact(path="a")
artifact.locator.Pack(locator)
assert artifact.locator.type_url == "type.googleapis.com/bazel_output_service_rev2.FileArtifactLocator"
unpacked = rev2.FileArtifactLocator()
assert their_any.Any.FromString(artifact.locator.SerializeToString()).Unpack(unpacked)
assert unpacked == locator
assert status_pb2.Status(code=5).SerializeToString() == bytes([8, 5])
assert not any("other" in m.fields_by_name for m in status_pb2.DESCRIPTOR.message_types_by_name.values())
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_other_definitions_of_the_same_names_in_the_process_do_no_harm(implementation: str) -> None:
    environment = {
        "PYTHONPATH": str(REPOSITORY / "src"),
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
    }
    command = [sys.executable, "-W", "error", "-c", OTHERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
