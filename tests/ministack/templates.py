"""The managed templates of the console as jobs (tests/system/templates.json, which the lab runs too), and a device for
them: our handlers in its handler directory, and recorders in place of the tools that change a machine.

The cloud here keeps `documentParameters` and puts them nowhere, and has no managed templates: the documents are filled in
as the service does, where a parameter that was not given becomes an empty text.
"""

import json
import os
import pathlib
import re
import shutil

HERE = pathlib.Path(__file__).resolve().parent
SYSTEM = HERE.parent / "system"
HANDLERS = HERE.parent.parent / "handlers"
TABLE = json.loads((SYSTEM / "templates.json").read_text())
TOOLS = ("apt-get", "systemctl", "site-tool")
PARAMETER = re.compile(r"\$\{aws:iot:parameter:(\w+)\}")
# What the rows of the table call another user, who must be one.
USER_ID = 65534


def missing(row):
    """Why a row cannot be run on this machine, or nothing."""
    if row.get("user") and not has_users():
        return "only root can become another user"
    if "file" in row and not any(shutil.which(tool) for tool in ("wget", "curl")):
        return "neither wget nor curl is there"
    return ""


def has_users():
    """Whether there are users beside us: in a name space of our own there are not."""
    ranges = [line.split() for line in pathlib.Path("/proc/self/uid_map").read_text().splitlines()]
    return os.geteuid() == 0 and any(int(first) <= USER_ID < int(first) + int(n) for first, _, n in ranges)


def fill(value, parameters):
    """A template's document with these parameters."""
    if isinstance(value, str):
        return PARAMETER.sub(lambda match: parameters.get(match.group(1), ""), value)
    if isinstance(value, list):
        return [fill(item, parameters) for item in value]
    return {key: fill(item, parameters) for key, item in value.items()} if isinstance(value, dict) else value


class Bench:
    """The folders that the rows are about. Other users may pass through, to the files and to the recorders."""

    def __init__(self, root, name):
        folder = root / name
        self.handlers, self.tools, self.files = folder / "handlers", folder / "tools", folder / "files"
        for directory, mode in ((self.handlers, 0o700), (self.tools, 0o755), (self.files, 0o777)):
            directory.mkdir(parents=True)
            directory.chmod(mode)
        root.chmod(0o711)
        self.restore_handlers()
        recorder = (SYSTEM / "recorder.sh").read_text().replace("HERE", str(self.tools))
        for tool in TOOLS:
            (self.tools / tool).write_text(recorder)
            (self.tools / tool).chmod(0o755)
        self.calls = self.tools / "calls"

    def wrapper(self):
        """What the agent is started by."""
        return [str(SYSTEM / "with-tools.sh"), str(self.tools)]

    def settings(self):
        return {"jobs": {"handler-directory": self.handlers}}

    def reboot_by(self, pipe):
        """What the recorder does for a reboot."""
        (self.tools / "systemctl.then").write_text(f"[ \"$1\" != reboot ] || echo reboot >'{pipe}'\n")

    def restore_handlers(self):
        for handler in HANDLERS.iterdir():
            shutil.copy(handler, self.handlers / handler.name)

    def prepare(self, row):
        """Before a row: nothing is written down, and what is to be broken is."""
        self.restore_handlers()
        self.calls.write_text("")
        self.calls.chmod(0o666)
        for status in self.tools.glob("*.status"):
            status.unlink()
        for tool, status in row.get("fails", {}).items():
            (self.tools / f"{tool}.status").write_text(f"{status}\n")
        if "gone" in row:
            (self.handlers / row["gone"]).unlink()

    def document(self, row, url, missing_url):
        words = {"{handlers}": str(self.handlers), "{files}": str(self.files), "{url}": url, "{missing}": missing_url}
        parameters = dict(row["parameters"])
        for name, value in parameters.items():
            for word, stands_for in words.items():
                value = value.replace(word, stands_for)
            parameters[name] = value
        return fill(TABLE["templates"][row["template"]], parameters)

    def called(self):
        return [line.split("\t") for line in self.calls.read_text().splitlines()]

    def difference(self, row, body):
        """What is not as the row says, after its job."""
        if self.called() != row["calls"]:
            return f"called were {self.called()}, not {row['calls']}"
        if "file" in row:
            path = self.files / row["file"]
            if not path.is_file() or path.read_bytes() != body:
                return f"{path} is not what was uploaded"
            owner = USER_ID if row.get("user") else os.geteuid()
            if path.stat().st_uid != owner:
                return f"{path} belongs to user {path.stat().st_uid}"
        return ""
