"""Buildroot's disk and update image: post-image.sh on a stand-in for Buildroot's folders, with the tools that it has there."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import tomllib

from otandem import disk

from . import BUILDROOT, MIB, agent, check, equal, need, refused
from .layouts import layout

BOARD = BUILDROOT / "board/otandem/qemu-x86-64"
DEFCONFIG = BUILDROOT / "configs/otandem_qemu_x86_64_defconfig"
NAME = "otandem-qemu-x86-64"


@check
def buildroots_layout_is_that_of_grub():
    parts = disk.partitions((BOARD / "genimage.cfg").read_text())
    equal(list(parts), [name for name, *_ in layout("grub")], "names")
    told = tomllib.loads((BOARD / "otandem.toml").read_text())
    equal(disk.check("genimage.cfg", parts, "otandem.toml", told), ("otandem-demo-qemu-x86-64", parts["root-a"]), "what it says")


@check
def a_disk_that_does_not_fit_the_devices_configuration_is_refused_in_one_sentence():
    text, told = (BOARD / "genimage.cfg").read_text(), (BOARD / "otandem.toml").read_text()
    without_data = re.sub(r"\tpartition data \{.*?\}\n", "", text, flags=re.S)
    data_first = without_data.replace("\tpartition esp", '\tpartition data {\n\t\tsize = 1M\n\t}\n\n\tpartition esp')
    cloud = '[cloud]\nendpoint = "x.example"\n'
    for part, cfg, toml in (
        ("has no compatible in [device]", text, told.replace("compatible =", "description =")),
        ("has no rootfs in [slots.B]", text, told.replace("[slots.B]", "[slots.C]")),
        ("has no rootfs in [slots.A]", text, re.sub(r"(?s)\[slots.*(?=\[boot)", "", told)),
        ('has kind = "lilo"', text, told.replace('"grub"', '"lilo"')),
        ("has no partition root-c with a size", text, told.replace("root-b", "root-c")),
        ("has no partition root-b with a size", re.sub(r"(root-b \{[^}]*)size = 256M", r"\1", text), told),
        ("has slots of different sizes", re.sub(r"(root-b \{[^}]*size = )256M", r"\g<1>255M", text), told),
        ("has no partition data", without_data, told),
        ("has no partition esp", text.replace("partition esp", "partition boot"), told),
        ("has data last", data_first, told),
        ("has no key for the cloud: set cert-store", text, told + cloud),
        ("the image has no such file", text, told + cloud + 'cert-store = "/data/certs"\nca = "/nowhere/ca.pem"\n'),
    ):
        part = "behind data" if part == "has data last" else part
        refused(part, disk.check, "genimage.cfg", disk.partitions(cfg), "otandem.toml", tomllib.loads(toml))


def option(name):
    """What the defconfig asks for."""
    return re.search(rf'^{name}="(.*)"$', DEFCONFIG.read_text(), re.M)[1]


class Folders:
    """What Buildroot has when it calls post-image.sh, as far as that looks at it."""

    def __init__(self, top, root=""):
        self.top = pathlib.Path(top)
        self.images, self.target = self.top / "images", self.top / "target"
        loader = self.images / "efi-part/EFI/BOOT/bootx64.efi"
        for folder in (loader.parent, self.top / "build", self.target / "usr/lib/otandem", self.target / "etc"):
            folder.mkdir(parents=True)
        (self.target / "usr/lib/otandem/otandem.toml").write_bytes((BOARD / "otandem.toml").read_bytes())
        self.configured()
        # As boot/grub2 of Buildroot calls it.
        modules, early = option("BR2_TARGET_GRUB2_BUILTIN_MODULES_EFI"), BOARD / "builtin.cfg"
        command = ["grub-mkimage", "-d", "/usr/lib/grub/x86_64-efi", "-O", "x86_64-efi", "-o", loader, "-p", "/EFI/BOOT", "-c", early]
        subprocess.run([*command, *modules.split()], check=True)
        if root:
            (self.images / "rootfs.ext4").write_bytes(pathlib.Path(root).read_bytes())
            return
        # post-build.sh before the file system is made, as there.
        (self.target / "etc/fstab").touch()
        (self.images / "bzImage").write_bytes(b"kernel" * 1000)
        for _ in range(2):
            subprocess.run([BOARD / "post-build.sh"], env=self.environment(), check=True)
        self.root()

    def configured(self, **options):
        lines = {"VERSION": "1.0", "S3_URL": "", "URL": ""} | options
        (self.top / ".config").write_text("".join(f'BR2_PACKAGE_OTANDEM_IMAGE_{name}="{value}"\n' for name, value in lines.items()))

    def root(self, size=option("BR2_TARGET_ROOTFS_EXT2_SIZE")):
        image = self.images / "rootfs.ext4"
        image.unlink(missing_ok=True)
        options = option("BR2_TARGET_ROOTFS_EXT2_MKFS_OPTIONS").split()
        subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, "-d", self.target, image, size], check=True, stdout=subprocess.DEVNULL)

    def environment(self, **more):
        folders = {"BINARIES_DIR": self.images, "TARGET_DIR": self.target, "BUILD_DIR": self.top / "build", "BR2_CONFIG": self.top / ".config"}
        return {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"} | {name: str(folder) for name, folder in folders.items()} | more

    def post_image(self, **more):
        return subprocess.run([BOARD / "post-image.sh"], env=self.environment(**more), capture_output=True, text=True)

    def made(self):
        return sorted(file.name for file in self.images.iterdir() if file.name.startswith((NAME, "disk")))


@check
def post_image_makes_the_disk_the_update_image_and_its_job_document():
    need("genimage", "grub-mkimage", "mke2fs", "mkfs.vfat", "mcopy", "sfdisk", "zstd")
    with tempfile.TemporaryDirectory() as top:
        folders = Folders(top)
        folders.configured(S3_URL="https://s3.eu-west-1.amazonaws.com/acme/gateway")
        run = folders.post_image(OTANDEM_IMAGE_VERSION="1.1")
        equal(run.returncode, 0, f"post-image.sh: {run.stdout}{run.stderr}")
        equal(folders.made(), ["disk.img", f"{NAME}-1.1-rootfs.zst", f"{NAME}-1.1.fota.json"], "files")
        equal((folders.target / "etc/fstab").read_text().count("by-partlabel/data /data ext4"), 1, "lines of fstab for data")
        image = (folders.images / "rootfs.ext4").read_bytes()
        equal(subprocess.check_output(["zstd", "-dcq", folders.images / f"{NAME}-1.1-rootfs.zst"]) == image, True, "the image inside")
        job = folders.images / f"{NAME}-1.1.fota.json"
        told = json.loads(job.read_text())["image"]
        equal((told["version"], told["compatible"], told["slot"]), ("1.1", "otandem-demo-qemu-x86-64", "rootfs"), "the document")
        assert told["url"].startswith("${aws:iot:s3-presigned-url-v2:https://s3.eu-west-1"), told["url"]
        # As the cloud hands it out.
        job.write_text(job.read_text().replace("${aws:iot:s3-presigned-url-v2:", "").replace(".zst}", ".zst"))
        plan = subprocess.run([agent(), "--config", BOARD / "otandem.toml", "job", "plan", job], capture_output=True, text=True)
        equal(plan.returncode, 0, f"otandem job plan: {plan.stdout}{plan.stderr}")
        made = folders.images / "disk.img"
        table = json.loads(subprocess.check_output(["sfdisk", "-J", made]))["partitiontable"]
        equal(table["label"], "gpt", "partition table")
        equal([part["name"] for part in table["partitions"]], ["esp", "root-a", "root-b", "data"], "partitions")
        for part in table["partitions"]:
            at, length = part["start"] * 512, part["size"] * 512
            equal(at % MIB, 0, f"{part['name']}: bytes beside a MiB")
            one = pathlib.Path(top, "partition")
            with open(made, "rb") as file:
                file.seek(at)
                one.write_bytes(file.read(length))
            if part["name"].startswith("root-"):
                with open(one, "rb") as file:
                    equal(file.read(len(image)) == image, True, f"{part['name']} is the image byte for byte")
            checker = ["fsck.vfat", "-n"] if part["name"] == "esp" else ["e2fsck", "-fn"]
            subprocess.run([*checker, one], check=True, capture_output=True)
            if part["name"] == "esp":
                told = subprocess.check_output(["mtype", "-i", one, "::/grub/grub.cfg"], text=True)
                assert "\nset otandem_initrd=\n" in told, told[:400]
                equal(len(subprocess.check_output(["mtype", "-i", one, "::/grub/grubenv"])), 1024, "bytes of grubenv")


@check
def post_image_stops_and_leaves_nothing_where_something_cannot_work():
    need("genimage", "grub-mkimage", "mke2fs")
    with tempfile.TemporaryDirectory() as top:
        folders = Folders(top)
        config = folders.target / "usr/lib/otandem/otandem.toml"
        good = config.read_text()
        for sentence, text in (
            ("otandem.toml has no rootfs in [slots.B]: set it to", good.replace("[slots.B]", "[slots.C]")),
            ("otandem.toml has no key for the cloud: set cert-store", good + '[cloud]\nendpoint = "x.example"\n'),
            ("otandem.toml is no TOML", good + "[cloud\n"),
        ):
            config.write_text(text)
            run = folders.post_image()
            assert run.returncode != 0 and sentence in run.stderr and len(run.stderr.splitlines()) == 1, run.stdout + run.stderr
            equal(folders.made(), [], f"files after {sentence!r}")
        config.write_text(good)
        folders.root("257M")
        run = folders.post_image()
        assert run.returncode != 0 and "set the size of both slots in genimage.cfg higher" in run.stderr, run.stdout + run.stderr
        equal(folders.made(), [], "files after an image larger than its slot")
        folders.root("16M")
        (folders.images / "efi-part/EFI/BOOT/bootx64.efi").unlink()
        assert folders.post_image().returncode != 0, "a disk without its bootloader was made"
        equal(folders.made(), [], "files without a bootloader")
