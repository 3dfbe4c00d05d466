"""The guided tour: plays every step for real and says what came of it. Never prints a number that it has not measured."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Final

from outputd.cli.checks import host
from outputd.cli.checks.finding import Verdict
from outputd.cli.console import show_bytes, show_count
from outputd.digest import Digest
from outputd.errors import OutputdError
from scripts.demo import outputs as build
from scripts.demo.client import BuildClient, Uploader, digest_of, open_channel
from scripts.demo.daemon import Failed, Place, running
from scripts.demo.story import Fetched, Stopwatch, run, say, show, title

OUTPUT_BASE: Final = "9e107d9d372bb6826bd81d3542a419d6"

_FAREWELL: Final = """
Try it yourself:
    .venv/bin/outputd doctor               is everything there that it needs?
    .venv/bin/outputd serve                start it, mounted at ~/outputd
    .venv/bin/outputd bazelrc              the lines that make Bazel use it
    docs/tutorial/first-lazy-build.md      the same, step by step, with your hands on it"""


def main() -> int:
    """The exit code: 0 when every step came out as it should."""
    for finding in (host.fuse_device("/dev/fuse"), host.right_to_mount(os.environ)):
        if finding.verdict is Verdict.FAIL:
            print(f"The demo mounts a file system, and here it cannot: {finding.reason}.", file=sys.stderr)
            print(f"What helps: {finding.fix}", file=sys.stderr)
            return 1
    root = tempfile.mkdtemp(prefix="outputd-demo-")
    watch = Stopwatch()
    try:
        asyncio.run(_tour(Place(f"{root}/server"), Place(f"{root}/yours")))
    except (Failed, OutputdError, AssertionError, OSError, subprocess.SubprocessError) as wrong:
        print(f"\nThe demo failed: {wrong}\nWhat the daemons wrote is in {root}/*/log", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing is mounted any more.", file=sys.stderr)
        shutil.rmtree(root)
        return 130
    shutil.rmtree(root)
    print(f"\nThat took {watch}, and nothing of it is left on this machine.\n{_FAREWELL}")
    return 0


async def _tour(server: Place, yours: Place) -> None:
    blobs = build.make_outputs()
    outputs = {path: digest_of(blob) for path, blob in blobs.items()}
    total = sum(map(len, blobs.values()))

    title("1. Two daemons start")
    say("One plays the cache of a build farm, on its embedded store. The other is yours; its store is empty.")
    async with running(server):
        async with running(yours, remote=server.target) as daemon:
            show(daemon.command)
            say(f"Yours is mounted at {daemon.status.mount.path} (FUSE {daemon.status.mount.abi}).")
            async with open_channel(server.target) as channel:
                await Uploader(channel).upload(blobs.values())
            tree = await _first_build(yours, outputs, total)

        title("5. The daemon is restarted")
        assert not os.path.ismount(yours.mount), f"{yours.mount} is still mounted"
        say("It got a SIGTERM, kept what it must, unmounted and ended. Now it starts again.")
        watch = Stopwatch()
        async with running(yours, remote=server.target):
            say(
                f"Answering again after {watch}, interpreter start included. The tree is back, local files too:"
            )
            run(f"ls -l {build.PROGRAM} && {build.PROGRAM}", tree)
            await _second_build(yours, outputs)
            moved = yours.bytes_stored()

    title("7. Both daemons have stopped")
    assert not os.path.ismount(yours.mount), f"{yours.mount} is still mounted"
    say(
        f"Nothing is mounted any more. Of {show_bytes(total)} of outputs, all of them visible all the time, "
        f"{show_bytes(moved)} came to your disk, what was compiled here included."
    )


async def _first_build(yours: Place, outputs: dict[str, Digest], total: int) -> str:
    title("2. A build: its outputs are staged by digest")
    fetched = Fetched(yours.bytes_stored)
    async with open_channel(yours.target) as channel:
        client = BuildClient(channel, OUTPUT_BASE, yours.mount)
        tree = await client.start()
        watch = Stopwatch()
        await client.stage(outputs)
        say(
            f"{show_count(len(outputs))} outputs, {show_bytes(total)}, staged in {watch}. They are files already:"
        )
        run("find . -type f | wc -l", tree)
        run(f"ls -l {build.BIN}/app", tree)
        fetched.tell()

        title("3. Whoever opens a file gets its bytes, and only then do they move")
        run(f"head -n 3 {build.SOURCE}", tree)
        fetched.tell()
        run(f"{build.SCRIPT}", tree)
        fetched.tell()
        run(f"cmp {build.BIN}/lib07/object0007.o {build.BIN}/lib07/object0027.o | head -n 1", tree)
        fetched.tell()

        title("4. A local action works in the same directory")
        if shutil.which("gcc"):
            run(f"gcc -o {build.PROGRAM} {build.SOURCE}", tree)
        else:
            say("(There is no gcc here: a shell script stands in for it.)")
            run(f"cp {build.SCRIPT} {build.PROGRAM} && chmod +x {build.PROGRAM}", tree)
        run(build.PROGRAM, tree)
        digest = (await client.stat([build.PROGRAM]))[build.PROGRAM]
        assert digest is not None, f"{build.PROGRAM} has no digest"
        say(
            f"The daemon knows what was written: {digest.hash_hex[:16]}…, {show_bytes(digest.size)}. The build ends."
        )
        outputs[build.PROGRAM] = digest
        await client.finalize(outputs)
        await client.end()
    return tree


async def _second_build(yours: Place, outputs: dict[str, Digest]) -> None:
    title("6. The next build finds its outputs")
    async with open_channel(yours.target) as channel:
        client = BuildClient(channel, OUTPUT_BASE, yours.mount)
        await client.start()
        watch = Stopwatch()
        found = await client.stat(outputs)
        took = str(watch)
        same = sum(found[path] == digest for path, digest in outputs.items())
        assert same == len(outputs), f"{len(outputs) - same} outputs of {len(outputs)} are lost or changed"
        say(
            f"BatchStat: {show_count(same)} of {show_count(len(outputs))} outputs unchanged, told in {took}. Nothing to do."
        )
        await client.end()


if __name__ == "__main__":
    sys.exit(main())
