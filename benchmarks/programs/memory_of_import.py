"""Import a module and print what that took, in MiB."""

from __future__ import annotations

import importlib
import resource
import sys


def main() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    importlib.import_module(sys.argv[1])
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    main()
