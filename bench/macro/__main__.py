"""All macro benchmarks, one after the other: `make bench`."""

from __future__ import annotations

from bench.macro import fetching, files, staging, starting


def main() -> None:
    print("== staging")
    staging.main()
    print("== starting")
    starting.main()
    print("== fetching")
    fetching.main([])
    print("== files")
    files.main()


if __name__ == "__main__":
    main()
