"""What stands in two places stands there alike."""

import hashlib
import importlib.machinery
import importlib.util
import re
import subprocess
import tomllib

from . import BUILDROOT, LAYER, ROOT, check, equal


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
def every_program_for_devices_is_built_by_recipe_and_package():
    recipe = (LAYER / "recipes-otandem/otandem/otandem_0.1.0.bb").read_text()
    package = (BUILDROOT / "package/otandem/otandem.mk").read_text()
    programs = [tomllib.loads((main.parent.parent / "Cargo.toml").read_text())["package"]["name"] for main in ROOT.glob("agent/*/src/main.rs")]
    assert "otandem" in programs, programs
    for name in programs:
        for text, where in ((recipe, "the recipe"), (package, "Buildroot's package")):
            assert f"--package {name} --bin {name}" in text, f"{where} does not build {name}"


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


@check
def every_file_that_a_recipe_names_is_there():
    for recipe in [*LAYER.rglob("*.bb"), *LAYER.rglob("*.bbappend")]:
        for name in re.findall(r"file://([A-Za-z0-9_.-]+)", recipe.read_text()):
            if name not in ("LICENSE",):
                assert [*recipe.parent.glob(f"*/{name}")], f"{recipe.name}: no {name}"
