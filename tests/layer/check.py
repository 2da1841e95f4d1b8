#!/usr/bin/env python3
"""What can be said about the Yocto layer and the Buildroot tree without BitBake and without Buildroot.

usage: tests/layer/check.py OTANDEM          the agent's program, from the build that the tests share

Prints `ok NAME`, `FAIL NAME: why` or `skip NAME: why` for each check; exit status 1 if one failed.
"""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LAYER = ROOT / "yocto-layer/meta-otandem"
BUILDROOT = ROOT / "buildroot"
sys.path.insert(0, str(LAYER / "lib"))

from otandem import boot, settings, update  # noqa: E402

CHECKS = []
MIB = settings.MIB


class Skip(Exception):
    """Not on this machine, and why."""


def check(function):
    CHECKS.append(function)
    return function


def equal(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def refused(part, function, *arguments):
    """The function ends in a mistake whose one sentence has this in it."""
    try:
        function(*arguments)
    except settings.Mistake as mistake:
        text = str(mistake)
        if part not in text:
            raise AssertionError(f"{text!r} does not speak of {part!r}") from mistake
        return
    raise AssertionError(f"nothing was refused where {part!r} is wrong")


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"no {program}")


def product(kind="grub", **changes):
    """Variables as otandem-settings.bbclass gives them, and changes: what `get` and `flag` of the layer are in BitBake."""
    systemd_boot = kind == "systemd-boot"
    values = {
        "OTANDEM_BOOTLOADER": kind,
        "OTANDEM_COMPATIBLE": "acme-gateway",
        "OTANDEM_VERSION": "2.4.0",
        "OTANDEM_ROOTFS_TYPE": "ext4",
        "OTANDEM_SLOTS": "rootfs kernel initrd" if systemd_boot else "rootfs",
        "OTANDEM_SLOT_rootfs[file]": "image.ext4",
        "OTANDEM_SLOT_rootfs[size]": "512M",
        "OTANDEM_SLOT_kernel[file]": "bzImage",
        "OTANDEM_SLOT_kernel[size]": "24M",
        "OTANDEM_SLOT_initrd[file]": "initrd",
        "OTANDEM_SLOT_initrd[size]": "24M",
        "OTANDEM_SET_B": "copy",
        "OTANDEM_BOOT_SIZE": "96M",
        "OTANDEM_DATA_SIZE": "128M",
        "OTANDEM_DATA": "/data",
        "OTANDEM_ENDPOINT": "abc123-ats.iot.eu-west-1.amazonaws.com",
    } | changes
    return values.get, lambda variable, flag: values.get(f"{variable}[{flag}]")


@check
def list_of_crates_equals_the_lock_file():
    subprocess.run([ROOT / "yocto-layer/make-crates", "--check"], check=True)


@check
def list_of_crates_refuses_what_bitbake_cannot_fetch():
    # No suffix: importlib wants to be told that it is Python.
    path = str(ROOT / "yocto-layer/make-crates")
    loader = importlib.machinery.SourceFileLoader("make_crates", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_crates", loader))
    loader.exec_module(module)
    for source in ("git+https://example.com/x#1", "registry+https://example.com/index"):
        try:
            module.crates(f'[[package]]\nname = "x"\nversion = "1.0.0"\nsource = "{source}"\n')
        except ValueError as error:
            assert source in str(error), error
        else:
            raise AssertionError(f"{source} was taken")


@check
def licence_checksums_are_those_of_the_licence():
    equal((LAYER / "COPYING").read_bytes(), (ROOT / "LICENSE").read_bytes(), "COPYING")
    found = 0
    for recipe in LAYER.rglob("*.bb"):
        for name, digest in re.findall(r"file://(\S*(?:LICENSE|COPYING));md5=([0-9a-f]+)", recipe.read_text()):
            equal(digest, hashlib.md5((ROOT / "LICENSE").read_bytes()).hexdigest(), f"{recipe.name}: {name}")
            found += 1
    assert found >= 4, f"only {found} recipes have a licence checksum"
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert f"sha256  {digest}  LICENSE" in (BUILDROOT / "package/otandem/otandem.hash").read_text()


@check
def packageconfig_is_one_to_one_with_the_features():
    features = set(tomllib.loads((ROOT / "agent/daemon/Cargo.toml").read_text())["features"]) - {"default"}
    text = (LAYER / "recipes-otandem/otandem/otandem_0.1.0.bb").read_text()
    found = dict(re.findall(r'^PACKAGECONFIG\[([a-z0-9-]+)\] = "--features ([a-z0-9-]+)"$', text, re.M))
    equal(set(found), features, "PACKAGECONFIG")
    assert all(name == feature for name, feature in found.items()), found
    default = set(re.search(r'^PACKAGECONFIG \?\?= "([^"]+)"', text, re.M)[1].split())
    assert default <= features, default - features
    offered = set(re.findall(r"\(BR2_PACKAGE_OTANDEM_[A-Z_]+\),([a-z-]+)\)", (BUILDROOT / "package/otandem/otandem.mk").read_text()))
    equal(offered, features - {"session", "boot-simulated"}, "Buildroot's options")


@check
def versions_are_those_of_the_workspace():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert (LAYER / f"recipes-otandem/otandem/otandem_{version}.bb").exists(), f"no recipe of {version}"
    assert f"OTANDEM_VERSION = {version}\n" in (BUILDROOT / "package/otandem/otandem.mk").read_text()


@check
def grub_modules_are_those_of_its_readme():
    wanted = re.search(r'M="([^"]+)"', (ROOT / "bootloader-hooks/grub/README.md").read_text())[1]
    recipe = (LAYER / "recipes-otandem/otandem-boot/otandem-boot_0.1.0.bb").read_text()
    equal(re.search(r'OTANDEM_GRUB_MODULES = "([^"]+)"', recipe)[1], wanted, "the recipe's")
    config = (BUILDROOT / "configs/otandem_qemu_x86_64_defconfig").read_text()
    equal(re.search(r'BUILTIN_MODULES_EFI="([^"]+)"', config)[1], wanted, "Buildroot's")


def installed(text, variables, root):
    """Runs the lines of a recipe or package that install handlers and the second name; the root that they made."""
    lines = [line.strip() for line in text.splitlines() if re.match(r"\t.*(/handlers|sbin)", line)]
    script = "\n".join(lines).replace("$(INSTALL)", "install").replace("sbin/aws-iot-device-client)", "sbin/aws-iot-device-client")
    for name, value in variables.items():
        script = script.replace(name, str(value))
    assert "$" not in script, script
    subprocess.run(["sh", "-eu", "-c", script], check=True)
    return pathlib.Path(root)


@check
def handlers_are_installed_as_strict_permissions_wants_them_and_the_second_name_leads_to_the_agent():
    recipe = (LAYER / "recipes-otandem/otandem/otandem_0.1.0.bb").read_text()
    package = (BUILDROOT / "package/otandem/otandem.mk").read_text()
    for text, variables in (
        (recipe, {"${S}": ROOT, "${D}": "@", "${otandem_libdir}": "/usr/lib/otandem", "${base_sbindir}": "/usr/sbin", "${bindir}": "/usr/bin"}),
        (package, {"$(@D)": ROOT, "$(TARGET_DIR)": "@"}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            root = installed(text, variables | {"@": folder}, folder)
            equal(os.readlink(root / "usr/sbin/aws-iot-device-client"), "../bin/otandem", "the second name")
            handlers = root / "usr/lib/otandem/handlers"
            equal(sorted(os.listdir(handlers)), sorted(os.listdir(ROOT / "handlers")), "handlers")
            (root / "otandem.toml").write_text("[jobs]\nstrict-permissions = true\n")
            document = {"operation": "echo", "args": ["hello"], "path": "default"}
            run = subprocess.run(
                [OTANDEM, "--config", root / "otandem.toml", "job", "run", "-", "--handler-directory", handlers],
                input=json.dumps(document), capture_output=True, text=True,
            )
            equal(run.returncode, 0, f"otandem job run: {run.stdout}{run.stderr}")


@check
def every_file_that_a_recipe_names_is_there():
    for recipe in [*LAYER.rglob("*.bb"), *LAYER.rglob("*.bbappend")]:
        for name in re.findall(r"file://([A-Za-z0-9_.-]+)", recipe.read_text()):
            if name not in ("LICENSE",):
                assert [*recipe.parent.glob(f"*/{name}")], f"{recipe.name}: no {name}"


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


def layout(kind, **more):
    """The partitions of a layout as (name, kind, size in MiB, options), its variables replaced as BitBake would."""
    variables = {
        "OTANDEM_WORK": "/w", "OTANDEM_BOOT_SIZE": "96M", "OTANDEM_SLOT_SIZE": "512M", "OTANDEM_DATA_SIZE": "128M",
        "OTANDEM_WKS_A": "--source rawcopy --sourceparams=file=/d/image.ext4", "OTANDEM_WKS_B": "--source empty",
    } | more
    text = (LAYER / f"files/wic/otandem-{kind}.wks.in").read_text()
    text = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)
    parts, table = [], None
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["bootloader"]:
            table = words[words.index("--ptable") + 1]
        if words[:1] == ["part"]:
            options = dict(re.findall(r"--([a-z-]+)[ =]((?!--)\S+)", line))
            size = settings.size("--fixed-size", options["fixed-size"]) // MIB
            parts.append((options["part-name"], options.get("part-type", "").upper(), size, options))
    equal(table, "gpt", f"{kind}: partition table")
    return parts


@check
def layouts_have_two_equal_aligned_slots_and_data_last():
    for kind in settings.BOOTLOADERS:
        parts = layout(kind)
        names = [name for name, *_ in parts]
        sizes = {name: size for name, _, size, _ in parts}
        equal(len(set(names)), len(names), f"{kind}: names")
        equal(names[-3:], [*settings.PARTITIONS.values(), "data"], f"{kind}: the last partitions")
        equal(sizes["root-a"], sizes["root-b"], f"{kind}: sizes of the slots")
        assert set(settings.VOLUMES[kind]) <= set(names), f"{kind}: {names}"
        for name, _, _, options in parts:
            assert int(options["align"]) % 1024 == 0, f"{kind}: {name} is not aligned to 1 MiB"
            # A label would change the bytes of the slot, and with them the digest that a job names.
            assert "label" not in options, f"{kind}: {name} has a label"
    equal([name for name, *_ in layout("grub")].index("root-a") + 1, 2, "grub.cfg: number of root-a")
    kinds = {name: kind for name, kind, *_ in layout("systemd-boot")}
    equal(kinds["esp"], "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "type of the EFI system partition")
    equal(kinds["xbootldr"], "BC13C2FF-59E6-4262-A352-B275FD6F7172", "type of the extended boot partition")


@check
def layouts_make_a_disk_with_the_names_that_devices_use():
    need("sfdisk")
    for kind in settings.BOOTLOADERS:
        parts, at, lines = layout(kind, OTANDEM_SLOT_SIZE="64M"), 4, ["label: gpt"]
        for name, part_type, size, _ in parts:
            lines.append(f"start={at}MiB, size={size}MiB, name={name}" + (f", type={part_type}" if part_type else ""))
            at += -(-size // 4) * 4
        with tempfile.NamedTemporaryFile() as disk:
            os.truncate(disk.name, (at + 4) * MIB)
            subprocess.run(["sfdisk", "-q", disk.name], input="\n".join(lines), text=True, check=True)
            table = json.loads(subprocess.check_output(["sfdisk", "-J", disk.name]))["partitiontable"]["partitions"]
        equal([part["name"] for part in table], [name for name, *_ in parts], kind)


@check
def buildroots_layout_is_that_of_grub():
    text = (BUILDROOT / "board/otandem/qemu-x86-64/genimage.cfg").read_text()
    equal(re.findall(r"partition (\S+) ", text), [name for name, *_ in layout("grub")], "names")
    sizes = dict(re.findall(r"partition (\S+) \{[^}]*size = (\d+)M", text))
    equal(sizes["root-a"], sizes["root-b"], "sizes of the slots")
    scripts = (BUILDROOT / "board/otandem/qemu-x86-64/post-image.sh").read_text()
    equal(int(re.search(r"slot_bytes=(\d+)", scripts)[1]), int(sizes["root-a"]) * MIB, "slot of the update image")


@check
def bad_settings_are_refused_in_one_sentence_that_names_the_variable():
    for name, changes in (
        ("OTANDEM_SLOTS is empty", {"OTANDEM_SLOTS": " "}),
        ("OTANDEM_SLOT_extra[file] is not set", {"OTANDEM_SLOTS": "rootfs extra"}),
        ("OTANDEM_SLOTS names a slot twice", {"OTANDEM_SLOTS": "rootfs rootfs"}),
        ("OTANDEM_SLOTS has no rootfs", {"OTANDEM_SLOTS": "extra", "OTANDEM_SLOT_extra[file]": "x", "OTANDEM_SLOT_extra[size]": "1M"}),
        ("take it out", {"OTANDEM_SLOTS": "rootfs kernel"}),
        ("OTANDEM_SLOT_rootfs[size]", {"OTANDEM_SLOT_rootfs[size]": "lots"}),
        ("OTANDEM_BOOTLOADER", {"OTANDEM_BOOTLOADER": "lilo"}),
        ("OTANDEM_BOOTLOADER", {"OTANDEM_BOOTLOADER": ""}),
        ("OTANDEM_DATA_SIZE", {"OTANDEM_DATA_SIZE": "0"}),
        ("OTANDEM_DATA is no path", {"OTANDEM_DATA": ""}),
        ("OTANDEM_COMPATIBLE", {"OTANDEM_COMPATIBLE": 'a"b'}),
        ("OTANDEM_VERSION", {"OTANDEM_VERSION": "1/2"}),
        ("OTANDEM_ROOTFS_TYPE", {"OTANDEM_ROOTFS_TYPE": "squashfs"}),
        ("OTANDEM_SET_B", {"OTANDEM_SET_B": "half"}),
        ("OTANDEM_S3_URL", {"OTANDEM_S3_URL": "s3://bucket"}),
        ("both set", {"OTANDEM_URL": "https://a.example", "OTANDEM_S3_URL": "https://b.example"}),
    ):
        refused(name, settings.check, *product(**changes))
    refused("OTANDEM_SLOTS has no kernel", settings.check, *product("systemd-boot", OTANDEM_SLOTS="rootfs"))
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("missing.pem", None), ("empty.pem", ""), ("device.key", "-----BEGIN EC PRIVATE KEY-----\n")):
            path = pathlib.Path(folder, name)
            if text is not None:
                path.write_text(text)
            refused(f"OTANDEM_CA names {path}", settings.check, *product(OTANDEM_CA=str(path)))
    for kind in settings.BOOTLOADERS:
        settings.check(*product(kind))


@check
def a_layout_without_a_partition_that_the_device_needs_is_refused():
    for kind in settings.BOOTLOADERS:
        text = (LAYER / f"files/wic/otandem-{kind}.wks.in").read_text()
        settings.layout(kind, "WKS_FILE", "ours", text)
        for name, *_ in layout(kind):
            without = re.sub(rf"^part .*--part-name {name} .*\n", "", text, flags=re.M)
            refused(f"WKS_FILE is mine.wks, which has no partition {name}:", settings.layout, kind, "WKS_FILE", "mine.wks", without)


@check
def a_disk_becomes_one_devices_own_once():
    need("sfdisk", "mke2fs", "debugfs", "e2fsck")
    with tempfile.TemporaryDirectory() as folder:
        disk, cert, key = (pathlib.Path(folder, name) for name in ("a disk", "cert", "a key"))
        cert.write_text("-----BEGIN CERTIFICATE-----\n")
        key.write_text("-----BEGIN PRIVATE KEY-----\n")
        disk.touch()
        os.truncate(disk, 16 * MIB)
        table = "label: gpt\nstart=1MiB, size=2MiB, name=root-a\nstart=4MiB, size=8MiB, name=data\n"
        subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True)

        def provision(*more, thing="gateway-0001"):
            command = [ROOT / "yocto-layer/provision", disk, thing, cert, key, *more]
            return subprocess.run(command, capture_output=True, text=True)

        assert "has no ext4" in provision().stderr, "a partition without a file system was taken"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", f"offset={4 * MIB}", disk, "8M"], check=True)
        assert "no thing name" in provision(thing='a"b').stderr, "a quote in a name was taken"
        assert "has no certificate" in provision(key).stderr, "a key was taken for a certificate"
        done = provision(cert)
        equal((done.returncode, done.stdout), (0, f"{disk} is gateway-0001\n"), done.stderr)
        assert "already" in provision().stderr, "the disk of a device was given to another one"
        data = pathlib.Path(folder, "data")
        data.write_bytes(disk.read_bytes()[4 * MIB : 12 * MIB])
        subprocess.run(["e2fsck", "-fn", data], check=True, capture_output=True)
        listed = subprocess.check_output(["debugfs", "-R", "ls -p /otandem/certs", data], stderr=subprocess.DEVNULL, text=True)
        found = {word.split("/")[5]: tuple(word.split("/")[2:5]) for word in listed.split("\n") if word.startswith("/")}
        equal(found["key.pem"], ("100600", "0", "0"), "mode and owner of the key")
        assert {"cert.pem", "ca.pem"} <= set(found), found
        told = subprocess.check_output(["debugfs", "-R", "cat /otandem/device.toml", data], stderr=subprocess.DEVNULL)
        equal(tomllib.loads(told.decode()), {"cloud": {"thing-name": "gateway-0001", "ca": "/data/otandem/certs/ca.pem"}}, "device.toml")


@check
def the_machine_decides_about_the_bootloader():
    for given, wanted in (
        (("x86 efi", "grub-efi", "u-boot"), "grub"),
        (("efi", "systemd-boot", None), "systemd-boot"),
        (("efi", "refind", None), ""),
        (("arm", "grub-efi", "u-boot-acme"), "u-boot"),
        ((None, None, None), ""),
    ):
        equal(settings.bootloader(*given), wanted, given)


@check
def the_agent_takes_the_configuration_of_each_chain():
    for kind in settings.BOOTLOADERS:
        text = settings.configuration(*product(kind))
        tomllib.loads(text)
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            run = subprocess.run([OTANDEM, "--config", file.name, "config", "check"], capture_output=True, text=True)
        # The thing name and the certificates are the device's own.
        told = [line for line in (run.stdout + run.stderr).splitlines() if not re.search(r"thing-name|cert", line)]
        equal(told, [], kind)


@check
def the_tests_for_a_device_pass_with_this_agent():
    with tempfile.TemporaryDirectory() as folder:
        lib, config = pathlib.Path(folder, "lib"), pathlib.Path(folder, "otandem.toml")
        lib.mkdir()
        (lib / "dead-man").symlink_to(ROOT / "agent/dist/usr/lib/otandem/dead-man")
        (lib / "handlers").symlink_to(ROOT / "handlers")
        config.write_text(DEVICE.replace("@", folder))
        pathlib.Path(folder, "otandem").symlink_to(pathlib.Path(OTANDEM).resolve())
        for name in ("root-a", "root-b"):
            pathlib.Path(folder, name).touch()
        environment = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "OTANDEM_LIB": str(lib),
            "OTANDEM_CONFIG": str(config),
            "OTANDEM_EXAMPLE": str(ROOT / "agent/dist/etc/otandem/otandem.toml.example"),
        }
        script = LAYER / "recipes-otandem/otandem/otandem/run-ptest"
        run = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, timeout=60)
        # What `set -e` and a missing program would leave: fewer lines than tests.
        words = [line.split(":")[0] for line in run.stdout.splitlines() if not line.startswith(" ")]
        equal(words, ["PASS"] * 11, run.stdout + run.stderr)


@check
def boot_files_keep_their_choice_and_get_the_products_arguments():
    hooks, arguments = ROOT / "bootloader-hooks", "console=ttyAMA0 quiet"
    text = (hooks / "grub/grub.cfg").read_text()
    made = boot.grub_cfg(text, "", arguments)
    assert f'set otandem_args="ro rootwait=30 panic=3 {arguments}"\n' in made and "set otandem_initrd=\n" in made
    changed = [new for old, new in zip(text.splitlines(), made.splitlines(), strict=True) if old != new]
    equal(len(changed), 2, "changed lines of grub.cfg")
    refused("OTANDEM_KERNEL_ARGS", boot.grub_cfg, text, "", 'a"b')
    for name in "ab":
        entry = boot.entry((hooks / f"systemd-boot/otandem-{name}.template").read_text(), "initrd", arguments)
        equal(len(entry), 512, "bytes of an entry")
        assert f" panic=3 {arguments}\n".encode() in entry and b"\ninitrd /otandem/" in entry, entry
        assert b"initrd" not in boot.entry(entry.decode(), "", arguments)
    refused("too long", boot.entry, entry.decode(), "initrd", "x" * 500)
    made = boot.boot_cmd((hooks / "uboot/boot.cmd").read_text(), arguments)
    assert f'setenv otandem_args "{arguments}"\n' in made and "# ==== selection" in made
    boot.boot_cmd((hooks / "uboot/virtual.cmd").read_text(), arguments)


@check
def environments_are_those_of_the_real_tools():
    need("grub-editenv", "fw_printenv")
    with tempfile.TemporaryDirectory() as folder:
        block = pathlib.Path(folder, "grubenv")
        subprocess.run(["grub-editenv", block, "create"], check=True)
        equal(boot.grubenv(), block.read_bytes(), "grubenv")
        pathlib.Path(folder, "env").write_bytes(boot.environment((ROOT / "bootloader-hooks/uboot/factory-env.txt").read_text()))
        config = pathlib.Path(folder, "fw_env.config")
        config.write_text(f"{folder}/env 0x0 0x4000\n{folder}/env 0x8000 0x4000\n")
        run = subprocess.run(["fw_printenv", "-c", config], capture_output=True, text=True, check=True)
        equal(sorted(run.stdout.split("\n")[:-1]), ["BOOT_A_LEFT=3", "BOOT_B_LEFT=3", "BOOT_ORDER=A B"], "U-Boot's")
        assert "rror" not in run.stderr, run.stderr


@check
def boot_volumes_hold_their_files_and_are_the_same_each_time():
    need("mkfs.vfat", "mcopy", "mtype")
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "tree")
        (tree / "EFI/BOOT").mkdir(parents=True)
        (tree / "EFI/BOOT/bootx64.efi").write_bytes(b"loader")
        pathlib.Path(folder, "kernel").write_bytes(b"kernel")
        boot.padded(f"{folder}/kernel", tree / "otandem/a/vmlinuz", MIB, "kernel")
        refused("OTANDEM_SLOT_kernel[size]", boot.padded, f"{folder}/kernel", tree / "x", 3, "kernel")
        digests = set()
        for name in ("one", "two"):
            boot.fat(tree, f"{folder}/{name}", 40 * MIB, 32, "ESP")
            digests.add(hashlib.sha256(pathlib.Path(folder, name).read_bytes()).hexdigest())
        equal(subprocess.check_output(["mtype", "-i", f"{folder}/one", "::/EFI/BOOT/BOOTX64.EFI"]), b"loader", "the loader")
        equal(len(subprocess.check_output(["mtype", "-i", f"{folder}/one", "::/otandem/a/vmlinuz"])), MIB, "the kernel's file")
        refused("OTANDEM_BOOT_SIZE", boot.fat, tree, f"{folder}/small", 2 * MIB - 1, 16, "BOOT")


@check
def boot_volumes_get_what_the_machine_deployed_and_nothing_that_lies_in_the_slots():
    need("mkfs.vfat", "mcopy", "mdir")
    slots = [settings.Slot("rootfs", "image.ext4", MIB), settings.Slot("kernel", "bzImage", MIB)]

    def names(image):
        listed = subprocess.check_output(["mdir", "-i", image, "-b", "-/", "::"], text=True)
        return sorted(line.removeprefix("::/") for line in listed.splitlines() if not line.endswith("/"))

    for kind, files, wanted in (
        ("systemd-boot", ["esp/loader/loader.conf", "xbootldr/loader/entries/otandem-b.conf"], {
            "esp": ["EFI/BOOT/bootx64.efi", "loader/loader.conf", "otandem/a/vmlinuz"],
            "xbootldr": ["loader/entries/otandem-b.conf", "otandem/b/vmlinuz"],
        }),
        ("u-boot", ["boot/boot.scr", "uboot-env.bin"], {"boot": ["boot.scr", "start.elf"]}),
        ("grub", ["esp/grub/grub.cfg"], {"esp": ["grub/grub.cfg"]}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            deploy, work = pathlib.Path(folder, "deploy"), pathlib.Path(folder, "work")
            deploy.mkdir()
            for name in ("bzImage", "boot.scr", "start.elf"):
                (deploy / name).write_text(f"the machine's {name}")
            for name in files:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_text("ours")
            made = (kind, slots, deploy, work, 40 * MIB, "bootx64.efi", "boot.scr start.elf bzImage", "bzImage")
            if kind == "systemd-boot":
                refused("set EFI_PROVIDER to systemd-boot", boot.volumes, *made)
                (deploy / "systemd-bootx64.efi").write_text("the loader")
            boot.volumes(*made)
            equal({file.stem: names(file) for file in sorted(work.glob("*.vfat"))}, wanted, kind)
            if kind == "u-boot":
                equal(subprocess.check_output(["mtype", "-i", work / "boot.vfat", "::/boot.scr"]), b"ours", "boot.scr")


@check
def boot_files_of_a_machine_are_found_by_name_and_pattern():
    with tempfile.TemporaryDirectory() as folder:
        for name in ("bootfiles/start.elf", "bootfiles/fixup.dat", "u-boot.bin"):
            path = pathlib.Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        found = boot.boot_files("bootfiles/* u-boot.bin;kernel8.img", folder)
        equal([target for _, target in found], ["fixup.dat", "start.elf", "kernel8.img"], "targets")
        refused("IMAGE_BOOT_FILES", boot.boot_files, "missing.bin", folder)


@check
def an_image_larger_than_its_slot_is_refused_before_anything_is_written():
    with tempfile.TemporaryDirectory() as folder:
        image, empty = pathlib.Path(folder, "image"), pathlib.Path(folder, "empty")
        image.write_bytes(b"x" * 100)
        empty.touch()
        refused("set OTANDEM_SLOT_SIZE higher", update.make, {"rootfs": (image, 99)}, folder, "x", "1", "acme")
        refused("set OTANDEM_SLOT_kernel[size] higher", update.make, {"kernel": (image, 99)}, folder, "x", "1", "acme")
        refused("is empty", update.make, {"rootfs": (empty, 99)}, folder, "x", "1", "acme")
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            line = f"--slot rootfs={image}:99 --out {folder} --name x --version 1 --compatible acme"
            equal(update.main(line.split()), 1, "exit status for builds without BitBake")
        assert "set the slot's size" in said.getvalue() and "OTANDEM" not in said.getvalue(), said.getvalue()
        equal(sorted(os.listdir(folder)), ["empty", "image"], "files")


@check
def the_agent_installs_the_update_image_by_its_job_document():
    need("zstd")
    with tempfile.TemporaryDirectory() as folder:
        out, device = pathlib.Path(folder, "out"), pathlib.Path(folder, "device")
        out.mkdir()
        (device / "boot").mkdir(parents=True)
        # More than a frame, and the last one not full.
        image = random.Random(7).randbytes(MIB) * 17 + b"end of the image" * 256
        pathlib.Path(folder, "image").write_bytes(image)
        for slot in "ab":
            (device / f"root-{slot}").write_bytes(b"otandem test image\n".ljust(24 * MIB, b"\0"))
        slots = ["--slot-a", device / "root-a", "--slot-b", device / "root-b"]
        simulator = pathlib.Path(OTANDEM).with_name("otandem-simulator")
        subprocess.run([simulator, "boot", device / "boot", *slots], check=True, stdout=subprocess.DEVNULL)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=out)
        handler.func.log_message = lambda *_: None
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}"
            made = update.make({"rootfs": (f"{folder}/image", 24 * MIB)}, out, "demo", "2.4.0", "acme-gateway", url, level=1)
            equal(subprocess.check_output(["zstd", "-dcq", out / made[0]]), image, "what plain zstd makes of it")
            config = device / "otandem.toml"
            config.write_text(DEVICE.replace("@", str(device)))
            command = [OTANDEM, "--config", config, "fota", "update", out / made[-1]]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            server.shutdown()
        equal(run.returncode, 0, f"otandem fota update: {run.stdout}{run.stderr}")
        written = [(device / f"root-{slot}").read_bytes()[: len(image)] == image for slot in "ab"]
        equal(sum(written), 1, "sets that hold the image")


DEVICE = """
[device]
compatible = "acme-gateway"
[slots.A]
index = 0
rootfs = "@/root-a"
[slots.B]
index = 1
rootfs = "@/root-b"
[bootloader]
kind = "simulated"
directory = "@/boot"
[update]
state-dir = "@/state"
run-dir = "@/run"
state-shared = false
"""


@check
def job_documents_for_s3_have_the_clouds_placeholder():
    packed = [update.Packed(slot, f"demo-{slot}.zst", "0" * 64, 1, "1" * 64, 2) for slot in ("rootfs", "kernel")]
    document = json.loads(update.document(packed, "1", "acme", s3_url="https://s3.eu-west-1.amazonaws.com/bucket/folder/"))
    equal([one["slot"] for one in document["images"]], ["rootfs", "kernel"], "slots")
    equal(
        document["images"][0]["url"],
        "${aws:iot:s3-presigned-url-v2:https://s3.eu-west-1.amazonaws.com/bucket/folder/demo-rootfs.zst}",
        "address",
    )
    assert "image" in json.loads(update.document(packed[:1], "1", "acme")), "one image stands alone"


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


def main():
    failed = False
    for function in CHECKS:
        name = function.__name__
        try:
            function()
            print(f"ok {name}", flush=True)
        except Skip as why:
            print(f"skip {name}: {why}", flush=True)
        except (AssertionError, OSError, subprocess.SubprocessError, settings.Mistake, ValueError, KeyError, TypeError) as why:
            failed = True
            print(f"FAIL {name}: {why}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    OTANDEM = sys.argv[1]
    sys.exit(main())
