"""`outputd status`: what the running daemon mounts, builds and stores. Never changes anything."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Colour, Console, ExitCode, columns, show_bytes, show_count, show_seconds
from outputd.cli.setting_flags import add_setting_flags, load_settings

if TYPE_CHECKING:
    from outputd.rpc.admin_client import Credential, GetStatusResponse, OfflineQueue, OutputBase, Remote

NAME: Final = "status"
SUMMARY: Final = "Show what the running daemon mounts, builds and stores."
EXAMPLES: Final = """\
  outputd status
  outputd status --listen unix:/tmp/other.sock
  outputd status --json | jq -r '.output_bases[].id'

exit code 4 when no daemon answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import status_of_daemon

    status = status_of_daemon(settings, console.environ)
    if arguments.json:
        console.print(json.dumps(as_data(status), indent=2))
    else:
        for line in _lines(status, console):
            console.print(line)
    return ExitCode.OK


def as_data(status: GetStatusResponse) -> dict[str, object]:
    """For --json: the fields of outputd.v1.GetStatusResponse; times in RFC 3339, unset ones null."""
    return {
        "version": status.version,
        "pid": status.pid,
        "uptime_seconds": _uptime(status),
        "mount": {
            "path": status.mount.path,
            "abi": status.mount.abi,
            "features": list(status.mount.features),
        },
        "listen_addresses": list(status.listen_addresses),
        "output_bases": [
            {
                "id": base.id,
                "running_build_id": base.running_build_id or None,
                "last_build_id": base.last_build_id or None,
                "last_build_time": _instant(base.last_build_time.seconds)
                if base.HasField("last_build_time")
                else None,
                "entries": base.entries,
                "dirty": base.dirty,
                "save_error": base.save_error or None,
                "obtainable": _obtainable_data(base),
                "upload": _upload_data(base),
            }
            for base in status.output_bases
        ],
        "store": {
            "path": status.store.path,
            "blobs": status.store.blobs if status.store.blobs >= 0 else None,
            "blob_bytes": status.store.blob_bytes if status.store.blob_bytes >= 0 else None,
            "local_only_blobs": status.store.local_only_blobs if status.store.blobs >= 0 else None,
            "local_only_bytes": status.store.local_only_bytes if status.store.blobs >= 0 else None,
            "partial_blobs": status.store.partial_blobs,
            "partial_bytes": status.store.partial_bytes,
            "total_bytes": status.store.total_bytes,
            "available_bytes": status.store.available_bytes,
            "keep_free_bytes": status.store.keep_free_bytes,
            "high_mark_bytes": status.store.high_mark_bytes or None,
            "total_files": status.store.total_files or None,
            "free_files": status.store.free_files if status.store.total_files else None,
        },
        "remote": _remote_data(status.remote) if status.HasField("remote") else None,
        "remotes": [_remote_data(remote) for remote in status.remotes],
        "restarts": status.restarts,
        "restart_error": status.restart_error or None,
    }


def _obtainable_data(base: OutputBase) -> dict[str, object]:
    known = base.obtainable
    return {
        "blobs": known.blobs if known.blobs >= 0 else None,
        "asked": _instant(known.asked.seconds) if known.HasField("asked") else None,
        "refresh": _instant(known.refresh.seconds) if known.HasField("refresh") else None,
        "missing": known.missing,
        "dropped_files": known.dropped_files,
        "dropped_directories": known.dropped_directories,
        "dropped_time": _instant(known.dropped_time.seconds) if known.HasField("dropped_time") else None,
    }


def _upload_data(base: OutputBase) -> dict[str, object] | None:
    if not base.HasField("upload"):
        return None
    upload = base.upload
    return {
        "running": upload.running,
        "blobs": upload.blobs,
        "bytes": upload.bytes,
        "waiting": upload.waiting,
        "root": upload.root or None,
        "error": upload.error or None,
    }


def _remote_data(remote: Remote) -> dict[str, object]:
    return {
        "name": remote.name or None,
        "prefix": remote.prefix,
        "instance_name": remote.instance_name,
        "url": remote.url,
        "state": _remote_state(remote),
        "last_error": remote.last_error or None,
        "last_error_time": _instant(remote.last_error_time.seconds)
        if remote.HasField("last_error_time")
        else None,
        "unanswered_since": _instant(remote.unanswered_since.seconds)
        if remote.HasField("unanswered_since")
        else None,
        "healed_blobs": remote.healed_blobs,
        "healed_bytes": remote.healed_bytes,
        "healing": remote.healing,
        "offline_queue": _queue_data(remote.offline_queue) if remote.HasField("offline_queue") else None,
        "credentials": [
            {
                "headers": list(known.headers),
                "source": known.source,
                "subject": known.subject or None,
                "expires": _instant(known.expires.seconds) if known.HasField("expires") else None,
                "error": known.error or None,
            }
            for known in remote.credentials
        ],
    }


def _queue_data(queue: OfflineQueue) -> dict[str, object]:
    return {
        "limit_bytes": queue.limit_bytes,
        "blobs": queue.blobs,
        "results": queue.results,
        "bytes": queue.bytes,
        "oldest": _instant(queue.oldest.seconds) if queue.HasField("oldest") else None,
        "last_error": queue.last_error or None,
        "last_error_time": _instant(queue.last_error_time.seconds)
        if queue.HasField("last_error_time")
        else None,
        "brought": queue.brought,
        "brought_bytes": queue.brought_bytes,
        "refused": [
            {
                "instance_name": refused.instance_name,
                "blob": refused.blob or None,
                "action": refused.action or None,
                "queued": _instant(refused.queued.seconds),
                "error": refused.error,
            }
            for refused in queue.refused
        ],
    }


def _remote_state(remote: Remote) -> str:
    name = type(remote).State.Name(remote.state)
    words = {"REACHABLE": "reachable", "FAILING": "failing", "GIVEN_UP": "given up"}
    return words.get(name, "not asked yet")


def _remote_rows(status: GetStatusResponse) -> Iterator[tuple[str, str]]:
    remotes = [*([status.remote] if status.HasField("remote") else []), *status.remotes]
    if not remotes:
        yield "remote", "none; the local store alone"
    for remote in remotes:
        yield f"remote {remote.name}".strip(), _remote_words(remote)
        if remote.HasField("offline_queue"):
            yield "", _queue_words(remote.offline_queue)
        for known in remote.credentials:
            yield "", _credential_words(known)


def _remote_words(remote: Remote) -> str:
    text = f"{remote.url}, {_remote_state(remote)}"
    if remote.name:
        text = f"{remote.prefix or 'all names'} -> {remote.url} {remote.instance_name}".rstrip()
        text += f", {_remote_state(remote)}"
    if remote.HasField("unanswered_since"):
        text += f", no answer since {_instant(remote.unanswered_since.seconds)}"
    if remote.last_error:
        text += f"; last error: {remote.last_error}"
    if remote.healed_blobs or remote.healing:
        text += f"; {show_count(remote.healed_blobs)} blobs that it had lost given back"
    if remote.healing:
        text += f", {show_count(remote.healing)} to go"
    return text


def _queue_words(queue: OfflineQueue) -> str:
    text = f"offline queue: {show_count(queue.blobs)} blobs and {show_count(queue.results)} action results wait, "
    text += f"{show_bytes(queue.bytes)} of {show_bytes(queue.limit_bytes)}"
    if queue.HasField("oldest"):
        text += f", the oldest since {_instant(queue.oldest.seconds)}"
    if queue.last_error:
        text += f"; last error: {queue.last_error}"
    if queue.brought:
        text += f"; {show_count(queue.brought)} brought, {show_bytes(queue.brought_bytes)}"
    if queue.refused:
        last = queue.refused[-1]
        text += f"; {show_count(len(queue.refused))} refused (--json lists them), the last: {last.error}"
    return text


def _credential_words(known: Credential) -> str:
    text = f"{', '.join(known.headers) or 'no headers'} from {known.source}"
    if known.subject:
        text += f", of {known.subject}"
    if known.HasField("expires"):
        text += f", until {_instant(known.expires.seconds)}"
    return text + (f"; {known.error}" if known.error else "")


def _lines(status: GetStatusResponse, console: Console) -> Iterator[str]:
    store, mount = status.store, status.mount
    yield console.paint(
        Colour.BOLD, f"outputd {status.version}, pid {status.pid}, up {show_seconds(_uptime(status))}"
    )
    held = "not counted yet"
    if store.blobs >= 0:
        held = (
            f"{show_count(store.blobs)} blobs, {show_bytes(store.blob_bytes)} "
            f"({show_bytes(store.blob_bytes - store.local_only_bytes)} evictable, {show_bytes(store.local_only_bytes)} only here)"
        )
    if store.partial_blobs:
        held += f", {show_bytes(store.partial_bytes)} of {show_count(store.partial_blobs)} more that are here in part"
    room = f"{show_bytes(store.available_bytes)} of {show_bytes(store.total_bytes)} free"
    if store.total_files:
        room += f", {show_count(store.free_files)} inodes"
    if store.available_bytes < store.keep_free_bytes:
        room += f", less than the {show_bytes(store.keep_free_bytes)} to be kept free: outputd gc --dry-run"
    yield from columns(
        [
            ("mount", mount.path),
            ("kernel", f"FUSE {mount.abi}; {', '.join(mount.features) or 'no extras'}"),
            ("listen", ", ".join(status.listen_addresses)),
            ("store", f"{store.path}: {held}; {room}"),
            *_remote_rows(status),
        ]
    )
    if status.restart_error:
        yield console.paint(
            Colour.YELLOW, f"warning: the last restart came to nothing: {status.restart_error}"
        )
    yield ""
    if not status.output_bases:
        yield "no output bases yet: `outputd bazelrc` tells how to make Bazel use this daemon"
        return
    rows = [("OUTPUT BASE", "BUILD", "LAST BUILD", "ENDED", "ENTRIES", "CHANGED", "ASKED FOR", "NEXT")]
    rows += [_row(base) for base in status.output_bases]
    yield from columns(rows)
    for base in status.output_bases:
        if base.save_error:
            warning = f"warning: {base.id} could not be saved, a restart would bring back an older tree: {base.save_error}"
            yield console.paint(Colour.YELLOW, warning)
        yield from (console.paint(Colour.YELLOW, line) for line in _losses(base))
        if base.HasField("upload"):
            yield _upload_line(base)


def _upload_line(base: OutputBase) -> str:
    upload = base.upload
    line = f"{base.id}: {show_count(upload.blobs)} blobs, {show_bytes(upload.bytes)} uploaded"
    if upload.running:
        line += f", {show_count(upload.waiting)} or more to go"
    if upload.root:
        line += f"; the remote has all of it as Directory {upload.root}"
    return f"{line}; not uploaded as a whole: {upload.error}" if upload.error else line


def _losses(base: OutputBase) -> Iterator[str]:
    known = base.obtainable
    if known.missing:
        yield (
            f"warning: {base.id}: nobody has {show_count(known.missing)} of its blobs any more; the next build will not see what "
            f"needs them (`outputd verify {base.id}` lists it)"
        )
    if known.HasField("dropped_time"):
        yield (
            f"warning: {base.id}: the CAS had lost {show_count(known.dropped_files)} files and the contents of "
            f"{show_count(known.dropped_directories)} directories, which were taken away at {_instant(known.dropped_time.seconds)}"
        )


def _row(base: OutputBase) -> tuple[str, str, str, str, str, str, str, str]:
    known = base.obtainable
    return (
        base.id,
        f"running {base.running_build_id}" if base.running_build_id else "none",
        base.last_build_id or "-",
        _instant(base.last_build_time.seconds) if base.HasField("last_build_time") else "-",
        show_count(base.entries),
        "yes" if base.dirty else "no",
        _instant(known.asked.seconds) if known.HasField("asked") else "-",
        _instant(known.refresh.seconds) if known.HasField("refresh") else "-",
    )


def _uptime(status: GetStatusResponse) -> float:
    return status.uptime.seconds + status.uptime.nanos / 1e9


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
