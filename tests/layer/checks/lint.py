"""Scripts, units, recipes and kas files, read by the tools that know them."""

import pathlib
import subprocess
import sys
import tempfile

from otandem import settings

from . import BUILDROOT, LAYER, ROOT, Skip, check, equal, need


@check
def shell_scripts_are_clean():
    need("shellcheck")
    scripts = [
        file
        for top in (LAYER.parent, BUILDROOT, ROOT / "tests/layer", ROOT / "bootloader-hooks/uboot")
        for file in top.rglob("*")
        if file.is_file() and file.read_bytes()[:16].startswith((b"#!/bin/sh", b"#!/usr/bin/env b"))
    ]
    assert len(scripts) > 6, scripts
    subprocess.run(["shellcheck", "-S", "info", *scripts], check=True)


@check
def units_are_right():
    need("systemd-analyze")
    unit = LAYER / "recipes-otandem/otandem-data/otandem-data/otandem-grow-data.service"
    with tempfile.TemporaryDirectory() as folder:
        text = unit.read_text().replace("/usr/lib/otandem/grow-data", str(unit.parent / "grow-data"))
        copy = pathlib.Path(folder, unit.name)
        copy.write_text(text)
        run = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
        ours = [line for line in run.stderr.splitlines() if unit.name in line]
        equal(ours, [], "systemd-analyze verify")


@check
def kas_files_load_and_name_what_is_there():
    try:
        import yaml
    except ImportError:
        raise Skip("no Python package yaml") from None
    files = sorted((LAYER / "kas").glob("*.yml"))
    assert len(files) >= 5, files
    for file in files:
        found = yaml.safe_load(file.read_text())
        equal(found["header"]["version"], 14, file.name)
        for name in found["header"].get("includes", []):
            assert (file.parent / name).exists(), f"{file.name}: no {name}"
    chains = {file.stem for file in files} & set(settings.BOOTLOADERS)
    equal(chains, set(settings.BOOTLOADERS), "a kas file for each chain")


@check
def oelint_has_nothing_to_say():
    program = pathlib.Path(sys.executable).with_name("oelint-adv")
    if not program.exists():
        raise Skip("no oelint-adv in .venv")
    recipes = sorted(LAYER.rglob("*.bb")) + sorted(LAYER.rglob("*.bbappend"))
    for series in ("scarthgap", "wrynose"):
        suppress = [word for rule in OELINT_NOT_OURS for word in ("--suppress", rule)]
        run = subprocess.run(
            [program, "--quiet", "--noinfo", "--nowarn", "--release", series, *suppress, *recipes], capture_output=True, text=True
        )
        equal((run.returncode, run.stdout + run.stderr), (0, ""), series)


# Reaches for the network, or asks for what is not ours to change: names with a hyphen are the custom in oe-core (core-image),
# files and overrides of other layers are not seen, the list of crates has the form that BitBake's own tool writes.
OELINT_NOT_OURS = [
    "oelint.vars.homepageping",
    "oelint.var.mandatoryvar.HOMEPAGE",
    "oelint.var.mandatoryvar.SRC_URI",
    "oelint.bbclass.underscores",
    "oelint.file.requirenotfound",
    "oelint.vars.inconspaces",
    "oelint.vars.specific",
    "oelint.var.override",
]
