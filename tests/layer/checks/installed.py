"""What recipe and package install, and the tests that go with it to a device."""

import json
import os
import pathlib
import re
import subprocess
import tempfile

from . import BUILDROOT, LAYER, ROOT, agent, check, equal
from .updates import DEVICE


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
                [agent(), "--config", root / "otandem.toml", "job", "run", "-", "--handler-directory", handlers],
                input=json.dumps(document), capture_output=True, text=True,
            )
            equal(run.returncode, 0, f"otandem job run: {run.stdout}{run.stderr}")


@check
def the_tests_for_a_device_pass_with_this_agent():
    with tempfile.TemporaryDirectory() as folder:
        lib, config = pathlib.Path(folder, "lib"), pathlib.Path(folder, "otandem.toml")
        lib.mkdir()
        (lib / "dead-man").symlink_to(ROOT / "agent/dist/usr/lib/otandem/dead-man")
        (lib / "handlers").symlink_to(ROOT / "handlers")
        config.write_text(DEVICE.replace("@", folder))
        pathlib.Path(folder, "otandem").symlink_to(agent().resolve())
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
