"""Where other servers differ from the table, and why we do not.

`python -m tests.interop.rev2_differences` prints table and differences as docs/reference/rev2-conformance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.interop import rev2_blobs, rev2_others  # noqa: F401 (they put their cases into the table)
from tests.interop.rev2_table import BLOB, CASES


@dataclass(frozen=True)
class Difference:
    """What another server does, and why we do not."""

    observed: object
    reason: str


DIFFERENCES: dict[tuple[str, str], Difference] = {}
"""By server and case."""

GRID: Final = "BuildGrid"
CASD: Final = "buildbox-casd"


def _differ(reason: str, *servers: str, **observed: object) -> None:
    for name, value in observed.items():
        for server in servers:
            DIFFERENCES[server, name.replace("_", " ")] = Difference(value, reason)


_differ(
    "They look for the hash alone, so a blob may be said to be there under a size that it has not got; the size is part of a "
    "digest. With one of them behind us it is their answer.",
    *(GRID, CASD, f"outputd before {GRID}", f"outputd before {CASD}"),
    find_missing_a_right_hash_with_a_wrong_size_is_absent=False,
)
_differ(
    "What cannot be a digest cannot be uploaded either: they say that it is absent, we say that it is none.",
    *(GRID, CASD),
    find_missing_refuses_a_hash_in_capitals=1,
    find_missing_refuses_a_hash_that_is_too_short=1,
    find_missing_refuses_a_size_below_zero=1,
    an_action_digest_that_is_none_is_refused="NOT_FOUND",
)
_differ("It does not look at the field.", GRID, find_missing_refuses_an_unknown_digest_function=1)
_differ(
    "Allowed; an answer that is a set is shorter.",
    CASD,
    find_missing_names_a_digest_once_though_asked_twice=2,
)
_differ(
    "Their gRPC libraries answer before the server is asked. Clients try INTERNAL again; this will never work.",
    *(GRID, CASD),
    a_request_that_is_no_message_is_refused="INTERNAL",
)
_differ(
    "They take what gRPC lets in (4 MiB); we keep to what capabilities say.",
    *(GRID, CASD),
    a_batch_to_be_kept_has_a_limit=["OK"] * 5,
)
_differ(
    "They offer no compression and take compressed bytes for the blob's own.",
    *(GRID, CASD),
    a_compressed_batch_is_kept=["INVALID_ARGUMENT", False],
    a_compressed_batch_that_is_no_zstandard_is_refused=["OK", True],
    a_batch_with_a_compressor_that_is_not_offered_is_refused=["OK"],
    a_stream_may_come_compressed_from_any_offset="INVALID_ARGUMENT",
    a_compressor_that_is_not_offered_is_unimplemented="INVALID_ARGUMENT",
    a_compressed_blob_is_written="INVALID_ARGUMENT",
    writing_what_is_there_compressed_gives_minus_one="INVALID_ARGUMENT",
)
_differ(
    "A fault: it cannot read a part of a blob.", GRID, a_stream_begins_and_ends_where_it_is_told="DATA_LOSS"
)
_differ(
    "bytestream.proto: a limit may go beyond the end, OUT_OF_RANGE is for offsets.",
    CASD,
    a_limit_beyond_the_end_is_no_error="INVALID_ARGUMENT",
)
_differ(
    "bytestream.proto says OUT_OF_RANGE; clients try INTERNAL again.",
    GRID,
    reading_beyond_the_end_is_out_of_range="INTERNAL",
    reading_before_the_beginning_is_out_of_range="INTERNAL",
)
_differ(
    "Some of these names are digests to it, of blobs that are absent.",
    CASD,
    reading_by_a_name_that_is_none_is_refused={"INVALID_ARGUMENT", "NOT_FOUND"},
)
_differ(
    "It answers with the code for methods that are not there. REv2 says INVALID_ARGUMENT for bytes that are not the blob.",
    GRID,
    writing_too_much_or_too_little_is_refused=["UNIMPLEMENTED", "UNIMPLEMENTED", False],
    a_write_that_does_not_say_it_is_finished_is_refused=["UNIMPLEMENTED", False],
)
_differ(
    "They do not look at the offset. It is there to notice what was lost on the way.",
    *(GRID, CASD),
    writing_at_a_wrong_offset_is_refused=BLOB,
)
_differ("It does not look at later names.", GRID, writing_to_another_name_midway_is_refused=BLOB)
_differ(
    "They keep nothing of a broken upload; clients begin anew.",
    *(GRID, CASD),
    a_broken_write_goes_on_where_the_server_says="UNIMPLEMENTED",
    the_status_of_what_is_there_is_complete="UNIMPLEMENTED",
    the_status_of_a_write_that_nobody_began_is_not_found="UNIMPLEMENTED",
)
_differ(
    "Allowed; we send a directory once, for one that is in many places may be in a tree a million times.",
    *(GRID, CASD),
    a_tree_comes_whole_and_each_directory_once=[True, 4],
)
_differ("It does not look at the token.", GRID, a_page_of_a_tree_that_no_answer_told_of_is_refused=4)
_differ(
    "They do not offer chunks, and say so in their capabilities.",
    *(GRID, CASD),
    a_blob_is_split_into_chunks_that_can_be_read="UNIMPLEMENTED",
    splitting_what_is_absent_is_not_found="UNIMPLEMENTED",
    chunks_are_spliced="UNIMPLEMENTED",
    splicing_what_does_not_fit_is_refused=["UNIMPLEMENTED", "UNIMPLEMENTED"],
)


def page() -> str:
    """docs/reference/rev2-conformance.md."""
    lines = [
        "<!-- Printed by `python -m tests.interop.rev2_differences`; do not edit. -->",
        "",
        "# REv2 conformance",
        "",
        "What the served Remote Execution API answers, call by call, good ones and bad. `make test` runs each line on outputd",
        "alone, on outputd before BuildGrid and buildbox-casd, and on these two themselves. A list is several answers of one case.",
        "",
        "| case | answer |",
        "|---|---|",
        *(f"| {case.name} | {_shown(case.expected)} |" for case in CASES.values()),
        "",
        "## Where other servers differ, and why we do not",
        "",
        "| server | case | its answer | why not ours |",
        "|---|---|---|---|",
        *(
            f"| {server} | {name} | {_shown(difference.observed)} | {difference.reason} |"
            for (server, name), difference in DIFFERENCES.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _shown(answer: object) -> str:
    if isinstance(answer, (set, frozenset)):
        answer = sorted(answer)
    return f"`{answer}`"


if __name__ == "__main__":
    print(page(), end="")
