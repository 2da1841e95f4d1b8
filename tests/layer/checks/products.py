"""What an integrator sets, and what becomes of it on the device."""

import pathlib
import re
import subprocess
import tempfile
import tomllib

from otandem import settings

from . import agent, check, equal, product, refused


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
            run = subprocess.run([agent(), "--config", file.name, "config", "check"], capture_output=True, text=True)
        # The thing name and the certificates are the device's own.
        told = [line for line in (run.stdout + run.stderr).splitlines() if not re.search(r"thing-name|cert", line)]
        equal(told, [], kind)
