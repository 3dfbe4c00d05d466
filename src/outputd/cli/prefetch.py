"""`outputd prefetch`: brings files before somebody reads them. Never changes a tree."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Console, ExitCode, show_bytes, show_count
from outputd.cli.progress import Progress
from outputd.cli.selected import add_selection, own_base, read_bytes, selection
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config import Places
from outputd.config.kinds import Size
from outputd.errors import Invalid

if TYPE_CHECKING:
    from outputd.rpc.trees_client import PrefetchResponse

NAME: Final = "prefetch"
SUMMARY: Final = "Bring files of a tree to this machine, after whatever somebody waits for."
EXAMPLES: Final = """\
  outputd prefetch bazel-bin/app                       a file, or all below a directory
  outputd prefetch '*/bin/**/*.so' --max-bytes 2GiB
  outputd prefetch --label //app:server --label //lib/...
  git diff --name-only | outputd prefetch -
  outputd prefetch --profile tests                     what `outputd profile record tests` has seen being read
  outputd prefetch --profile-file ci/tests.profile --output-base 9da951b8cb759233037166e28f7ea186

exit code 0 when all that matches is here, 1 when something could not be brought or nothing matches, 4 when no daemon answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--max-bytes",
        type=_size,
        default=0,
        metavar="SIZE",
        help="bring no more than this, for instance 2GiB",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="instead of patterns, what was read while this profile was recorded; of large files only those parts",
    )
    parser.add_argument(
        "--profile-file",
        metavar="FILE",
        help="the same from a file, as `outputd profile show` prints it; - is standard input",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.trees_client import PrefetchRequest, prefetch

    target, status = answering(settings, console.environ)
    chosen = selection(arguments, status)
    if arguments.profile is None and arguments.profile_file is None:
        if not chosen:
            raise Invalid("nothing is named: give a PATTERN, a --label or a --profile")
        requests = [PrefetchRequest(output_base_id=base, patterns=some) for base, some in chosen.items()]
    elif chosen or None not in (arguments.profile, arguments.profile_file):
        raise Invalid("patterns, --profile and --profile-file: give one of them")
    else:
        request = PrefetchRequest(output_base_id=own_base(arguments, status), profile=arguments.profile or "")
        if arguments.profile_file is not None:
            request.profile_text = read_bytes(arguments.profile_file)
        requests = [request]
    results = {}
    for request in requests:
        request.max_bytes = arguments.max_bytes
        with Progress(console) as progress:
            results[request.output_base_id] = prefetch(target, request, partial(show_bringing, progress))
    if arguments.json:
        console.print(json.dumps({"trees": [as_data(*item) for item in results.items()]}, indent=2))
    else:
        for output_base_id, done in results.items():
            _tell(output_base_id, done, console)
    whole = all(not done.failed and done.matched.files for done in results.values())
    return ExitCode.OK if whole else ExitCode.FAILURE


def as_data(output_base_id: str, done: PrefetchResponse) -> dict[str, object]:
    """For --json."""
    return {
        "output_base_id": output_base_id,
        "matched": {"files": done.matched.files, "bytes": done.matched.bytes},
        "missing": {"blobs": done.missing.files, "bytes": done.missing.bytes},
        "fetched": {"blobs": done.fetched.files, "bytes": done.fetched.bytes},
        "left_out": {"blobs": done.left_out.files, "bytes": done.left_out.bytes},
        "absent": done.absent,
        "failed": done.failed,
        "first_failure": done.first_failure or None,
    }


def _tell(output_base_id: str, done: PrefetchResponse, console: Console) -> None:
    console.print(
        f"{output_base_id}: {show_count(done.matched.files)} files match ({show_bytes(done.matched.bytes)}), "
        f"{show_count(done.fetched.files)} blobs were fetched ({show_bytes(done.fetched.bytes)})"
    )
    if done.absent:
        console.print(f"  not in this tree: {show_count(done.absent)} files of the profile")
    if done.left_out.files:
        console.print(
            f"  left out because of --max-bytes: {show_count(done.left_out.files)} blobs ({show_bytes(done.left_out.bytes)})"
        )
    if done.failed:
        console.complain(f"{done.failed} blobs could not be fetched; the first: {done.first_failure}")


def show_bringing(progress: Progress, reply: PrefetchResponse) -> None:
    """A bar."""
    wanted = reply.missing.bytes - reply.left_out.bytes
    blobs = reply.missing.files - reply.left_out.files
    progress.show(
        f"{show_bytes(reply.fetched.bytes)} of {show_bytes(wanted)}, "
        f"{show_count(reply.fetched.files)} of {show_count(blobs)} blobs",
        reply.fetched.bytes / wanted if wanted else 1.0,
    )


def _size(text: str) -> int:
    try:
        return Size(1, 1 << 60).parse(text, Places({}, 0, None))
    except Invalid as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None
