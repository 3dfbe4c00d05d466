"""Cases of the table: trees, chunks, the action cache, capabilities and execution."""

from __future__ import annotations

from outputd._proto import operations_pb2 as longrunning
from outputd._proto import remote_execution_pb2 as reapi
from tests.interop.rev2_client import CAS, REV2, Client, digest_of, outcome, pieces, read_name, write_name
from tests.interop.rev2_table import BLOB, EMPTY, case, fresh, halves

# trees


def _tree(client: Client) -> list[bytes]:
    """Serialized directories, the root first."""
    salt = fresh(8).hex()
    leaf = reapi.Directory(files=[reapi.FileNode(name=salt, digest=EMPTY)]).SerializeToString()
    middle = reapi.Directory(
        directories=[reapi.DirectoryNode(name="leaf", digest=digest_of(leaf))]
    ).SerializeToString()
    root = reapi.Directory(
        directories=[
            reapi.DirectoryNode(name="again", digest=digest_of(leaf)),
            reapi.DirectoryNode(name="middle", digest=digest_of(middle)),
        ]
    ).SerializeToString()
    client.put(leaf, middle, root)
    return [root, middle, leaf]


def _get_tree(client: Client, root: reapi.Digest, size: int = 0, token: str = "") -> list[bytes]:
    request = reapi.GetTreeRequest(root_digest=root, page_size=size, page_token=token)
    return [
        directory.SerializeToString()
        for page in client.stream(CAS + "GetTree", request, reapi.GetTreeResponse)
        for directory in page.directories
    ]


@case([True, 3])
def a_tree_comes_whole_and_each_directory_once(client: Client) -> object:
    directories = _tree(client)
    came = _get_tree(client, digest_of(directories[0]), 1)
    return [set(came) == set(directories), len(came)]


@case("NOT_FOUND")
def a_tree_that_is_absent_is_not_found(client: Client) -> object:
    return _get_tree(client, digest_of(fresh()))


@case("INVALID_ARGUMENT")
def a_page_of_a_tree_that_no_answer_told_of_is_refused(client: Client) -> object:
    return len(_get_tree(client, digest_of(_tree(client)[0]), token="garbage"))


# chunks


def split(client: Client, digest: reapi.Digest) -> list[reapi.Digest]:
    request = reapi.SplitBlobRequest(blob_digest=digest)
    return list(client.unary(CAS + "SplitBlob", request, reapi.SplitBlobResponse).chunk_digests)


def _splice(client: Client, digest: reapi.Digest, *chunks: reapi.Digest) -> object:
    request = reapi.SpliceBlobRequest(blob_digest=digest, chunk_digests=chunks)
    return client.unary(CAS + "SpliceBlob", request, reapi.SpliceBlobResponse).blob_digest == digest


@case([True, True])
def a_blob_is_split_into_chunks_that_can_be_read(client: Client) -> object:
    data = fresh(3 << 20)
    name = write_name(digest_of(data))
    client.write(pieces(name, *(data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20))))
    chunks = split(client, digest_of(data))
    return [len(chunks) > 1, b"".join(client.read(read_name(chunk)) for chunk in chunks) == data]


@case("NOT_FOUND")
def splitting_what_is_absent_is_not_found(client: Client) -> object:
    return split(client, digest_of(fresh()))


@case([True, True])
def chunks_are_spliced(client: Client) -> object:
    data = fresh(BLOB)
    return [_splice(client, digest_of(data), *client.put(*halves(data))), client.has(data)]


@case(["INVALID_ARGUMENT", "NOT_FOUND"])
def splicing_what_does_not_fit_is_refused(client: Client) -> object:
    data = fresh(BLOB)
    first, second = client.put(*halves(data))
    wrong = outcome(lambda: _splice(client, digest_of(data), second, first))
    absent = outcome(lambda: _splice(client, digest_of(data), first, digest_of(fresh(BLOB // 2))))
    return [wrong, absent]


# the action cache


def _update(client: Client, action: reapi.Digest, result: reapi.ActionResult) -> reapi.ActionResult:
    request = reapi.UpdateActionResultRequest(action_digest=action, action_result=result)
    return client.unary(REV2 + "ActionCache/UpdateActionResult", request, reapi.ActionResult)


def _get(client: Client, action: reapi.Digest, **wishes: bool) -> reapi.ActionResult:
    request = reapi.GetActionResultRequest(action_digest=action, **wishes)  # type: ignore[arg-type]
    return client.unary(REV2 + "ActionCache/GetActionResult", request, reapi.ActionResult)


@case("NOT_FOUND")
def an_action_that_nobody_ran_is_not_found(client: Client) -> object:
    return _get(client, digest_of(fresh()))


@case([True, b"said"])
def a_result_is_kept_and_its_output_may_be_inlined(client: Client) -> object:
    output, said = client.put(fresh(), b"said")
    action = digest_of(fresh())
    result = reapi.ActionResult(stdout_digest=said)
    result.output_files.add(path="out", digest=output)
    _update(client, action, result)
    came = _get(client, action, inline_stdout=True)
    return [came.output_files == result.output_files, came.stdout_raw or client.read(read_name(said))]


@case("NOT_FOUND")
def a_result_without_its_blobs_is_not_found(client: Client) -> object:
    action = digest_of(fresh())
    result = reapi.ActionResult()
    result.output_files.add(path="out", digest=digest_of(fresh()))
    _update(client, action, result)
    return _get(client, action)


@case("INVALID_ARGUMENT")
def an_action_digest_that_is_none_is_refused(client: Client) -> object:
    return _get(client, reapi.Digest(hash="xyz", size_bytes=1))


# capabilities and execution


@case([True, True, True])
def capabilities_say_what_clients_need(client: Client) -> object:
    told = client.unary(
        REV2 + "Capabilities/GetCapabilities", reapi.GetCapabilitiesRequest(), reapi.ServerCapabilities
    )
    return [
        told.low_api_version.major == 2 == told.high_api_version.major,
        reapi.DigestFunction.SHA256 in told.cache_capabilities.digest_functions,
        told.cache_capabilities.max_batch_total_size_bytes < 4 << 20,
    ]


@case("UNIMPLEMENTED")
def executing_where_nothing_executes_is_unimplemented(client: Client) -> object:
    request = reapi.ExecuteRequest(action_digest=digest_of(fresh()))
    return list(client.stream(REV2 + "Execution/Execute", request, longrunning.Operation))
