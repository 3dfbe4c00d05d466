"""The settings of remotes: one for all instance names, or several by prefix. Part of the table in settings.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from outputd.config.key import Key
from outputd.config.kinds import (
    Boolean,
    Choice,
    Count,
    CredentialHelpers,
    FilePath,
    HeaderNames,
    Headers,
    InstanceName,
    NetrcFile,
    Optional,
    RemoteUrl,
    Seconds,
    Size,
    Text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A REv2 server behind the local store."""

    url: Annotated[
        str | None,
        Key(
            Optional(RemoteUrl()),
            None,
            "The server that holds what the local store lacks: `grpc://`, `grpcs://` (TLS) or `unix:`; not set: none.",
            "--remote",
            "URL",
        ),
    ]
    instance_name: Annotated[
        str,
        Key(
            Text(),
            "",
            "The server's instance name for calls that carry none; the same as Bazel's --remote_instance_name.",
        ),
    ]
    timeout: Annotated[
        float,
        Key(
            Seconds(least=0.1),
            30,
            "How long to wait for the answer to one request, or for the next piece of a stream.",
        ),
    ]
    retry_seconds: Annotated[
        float,
        Key(
            Seconds(),
            30,
            "How long a request that fails for a passing reason is tried again after its last progress; a server that answers "
            "nothing for so long is given up, and calls fail at once until it answers a probe.",
        ),
    ]
    max_concurrent: Annotated[
        int,
        Key(
            Count(1, 10_000),
            64,
            "How many requests may be under way at once, at most; fewer while the server pushes back.",
        ),
    ]
    ca_file: Annotated[
        str | None,
        Key(
            Optional(FilePath()),
            None,
            "PEM file of the authorities that may vouch for a grpcs:// server; not set: the usual ones.",
        ),
    ]
    client_cert: Annotated[
        str | None,
        Key(
            Optional(FilePath()), None, "PEM file of our certificate, for a server that asks for one (mTLS)."
        ),
    ]
    client_key: Annotated[
        str | None, Key(Optional(FilePath()), None, "PEM file of the private key of `client_cert`.")
    ]
    headers: Annotated[
        tuple[tuple[str, str], ...],
        Key(
            Headers(),
            {},
            'Metadata for every request, for instance `authorization = "@~/.cache-token"`: `@PATH` is read from that file, and '
            "read again when it changes.",
        ),
    ] = field(repr=False)
    credential_helper: Annotated[
        tuple[tuple[str, str], ...],
        Key(
            CredentialHelpers(),
            [],
            "Programs that tell the headers for a server, as Bazel's --credential_helper: `PATH`, or `PATTERN=PATH` for hosts that "
            "match (`cache.example.com`, `*.example.com`); the closest match counts. `%workspace%` is not known here.",
        ),
    ]
    credential_helper_timeout: Annotated[
        float,
        Key(Seconds(least=0.1), 10, "How long a credential helper may take; as Bazel's flag of that name."),
    ]
    credential_helper_cache_duration: Annotated[
        float,
        Key(
            Seconds(least=1),
            1800,
            "How long headers of a credential helper are used that does not say when they end; as Bazel's flag of that name.",
        ),
    ]
    netrc: Annotated[
        str | None,
        Key(
            NetrcFile(),
            "auto",
            "A .netrc with user and password for the server's host, sent as Basic authorization where nobody else gives one and no "
            "`credential_helper` is for the host; `auto`: $NETRC or ~/.netrc, as Bazel; `off`: none.",
        ),
    ]
    client_headers: Annotated[
        tuple[str, ...],
        Key(
            HeaderNames(),
            ["authorization"],
            "Which headers of a client's own call are passed on with what is asked because of it, where neither `headers` nor "
            "`credential_helper` gives them; for instance `x-buildbuddy-api-key` as well.",
        ),
    ]
    remember_authorization: Annotated[
        float,
        Key(
            Seconds(),
            28_800,
            "How long the `client_headers` that a client's own call carried are used for reads of ours, in memory only; 0: not at "
            "all.",
        ),
    ]
    check_results: Annotated[
        bool,
        Key(
            Boolean(),
            False,
            "Ask for every blob of an action's result before it is answered, for a server whose action cache does not do that "
            "itself; one more round trip for each action.",
        ),
    ]
    max_batch_bytes: Annotated[
        int,
        Key(
            Size(1 << 10, 1 << 30),
            "3 MiB",
            "Largest sum of blob sizes in one batch request; the server's own limit counts too, larger blobs are streamed.",
        ),
    ]
    compression: Annotated[
        str,
        Key(
            Choice(("auto", "zstd", "off")),
            "auto",
            "Whether blobs travel as Zstandard where the server offers it: unless it is on this machine (`auto`), always (`zstd`, "
            "for an address here that leads elsewhere), or never (`off`). Blobs below 1 KiB go as they are, and so does on "
            "the way there what would not become smaller.",
        ),
    ]
    upload_outputs: Annotated[
        bool,
        Key(
            Boolean(),
            False,
            "After each build upload what it has made here, with the Directory messages of its output tree, in the background: the "
            "tree can then be had elsewhere by its root digest, and its blobs need not stay here.",
        ),
    ]
    upload_rate: Annotated[
        int,
        Key(
            Size(0, 1 << 40),
            "20 MiB",
            "How many bytes a second `upload_outputs` and `offline_queue` send at most, each on average; 0: as many as the server "
            "takes.",
        ),
    ]
    offline_queue: Annotated[
        int,
        Key(
            Size(0, 1 << 44),
            0,
            "While the server does not answer, how many bytes of uploads (blobs, action results) are acknowledged, kept here and "
            "brought to it later; 0: none, clients are told UNAVAILABLE. Off, for others may rely on what was acknowledged.",
        ),
    ]
    offline_queue_age: Annotated[
        float,
        Key(
            Seconds(least=60),
            1_209_600,
            "How long an upload waits in `offline_queue` at most; then it is given up, with a line in the log.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRemote(Remote):
    """One of several REv2 servers: it has the instance names that begin with `prefix`, `[remote]` has all others. Only the settings
    file names such servers; NAME is any word."""

    prefix: Annotated[
        str | None,
        Key(
            Optional(InstanceName()),
            None,
            "What the clients' instance names begin with, whole words between slashes; the longest counts. Not set: NAME.",
        ),
    ]
    instance_name: Annotated[
        str,
        Key(
            InstanceName(),
            "",
            "What stands in place of the prefix in the instance names that this server is asked for.",
        ),
    ]
