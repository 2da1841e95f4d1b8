#!/usr/bin/env python3
"""What can be said about the Yocto layer and the Buildroot tree without BitBake and without Buildroot.

usage: tests/layer/check.py OTANDEM          the agent's program, from the build that the tests share

Prints `ok NAME`, `FAIL NAME: why` or `skip NAME: why` for each check; exit status 1 if one failed. The checks are in the
folder `checks`, by what they look at.
"""

import importlib
import subprocess
import sys

import checks

MODULES = ("lists", "installed", "lint", "layouts", "products", "boots", "updates", "genimage")


def main():
    failed = False
    for module in MODULES:
        importlib.import_module(f"checks.{module}")
    for function in checks.CHECKS:
        name = function.__name__
        try:
            function()
            print(f"ok {name}", flush=True)
        except checks.Skip as why:
            print(f"skip {name}: {why}", flush=True)
        except (AssertionError, OSError, subprocess.SubprocessError, checks.settings.Mistake, ValueError, KeyError, TypeError) as why:
            failed = True
            print(f"FAIL {name}: {why}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main())
