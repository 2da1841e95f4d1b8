"""The files and volumes that a bootloader reads."""

import hashlib
import pathlib
import subprocess
import tempfile

from otandem import boot, settings

from . import MIB, ROOT, check, equal, need, refused


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
