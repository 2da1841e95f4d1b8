"""Files of services and updates from files, against the shadows of a cloud that we did not write."""

import json

LIMIT = 60  # seconds; each step takes a fraction of one
THING = "shadowed"


def files_and_shadows(world, promise):
    """What docs/services.md promises, step by step."""
    folder = world.folder / THING
    services, updates, outfile = folder / "services", folder / "updates", folder / "foo.rc"
    services.mkdir(parents=True)
    for part in ("tmp", "new", "failed"):
        (updates / part).mkdir(parents=True)
    default = """echo "{\\"made-for\\":\\"$(cat)\\",\\"foo\\":{\\"a\\":1}}\""""
    device = world.device(THING, {"services.test": {
        "directory": services, "updates": updates, "default-shadow": default}})
    define(services, "foo", outfile, "SHELL", folder / "foo.log")
    define(services, "net", folder / "net.json", "JSON", folder / "net.log", shadow="settings")
    world.console.allow_shadows(THING)
    put(updates, "own.1", "1")

    def becomes(what, holds, shadow=None):
        state = world.console.watch_state(THING, holds, LIMIT, shadow)
        promise(f"shadows: {what}", holds(state), "" if holds(state) else state)

    def file_is(what, text):
        found = outfile.read_text()
        promise(f"shadows: {what}", found == text, "" if found == text else repr(found))

    with device:
        becomes("one that does not exist is made by the command, and an update that waited is in it", lambda state:
                state.get("reported") == {"made-for": THING, "foo": {"a": 1}, "own": 1})
        file_is("the file has it", "a='1'\n")
        world.console.desire(THING, {"foo": {"b": "it's"}, "nobody": 1})
        becomes("what is desired is reported and taken out, and nothing else is", lambda state:
                state["reported"]["foo"] == {"a": 1, "b": "it's"} and state["desired"] == {"nobody": 1})
        file_is("a shell can take the file", "a='1'\nb='it'\\''s'\n")
        world.console.desire(THING, {"foo": {"no-name": 1}})
        becomes("what a shell cannot take stays desired and says why", lambda state:
                "no-name" in state["reported"].get("otandem", {}).get("refused", {}).get("foo", "")
                and state["desired"] == {"nobody": 1, "foo": {"no-name": 1}})
        world.console.desire(THING, {"foo": None, "nobody": None})
        becomes("without it there is no refusal any more", lambda state:
                "desired" not in state and "otandem" not in state["reported"])
        for number in range(100):
            put(updates, f"many.{number:03}", json.dumps({f"n{number}": number}))
        becomes("a hundred files are one value", lambda state:
                state["reported"].get("many") == {f"n{number}": number for number in range(100)})
        world.console.desire(THING, {"net": {"c": [1, 2]}}, "settings")
        becomes("a named one is served beside it", lambda state: state.get("reported") == {"net": {"c": [1, 2]}}, "settings")
        world.console.desire(THING, {"foo": "DELETE"})
        becomes("a whole key is deleted", lambda state: "foo" not in state["reported"] and "desired" not in state)
        file_is("and its file is empty", "\n")
        promise("shadows: the device is still there", not device.broken, device.broken)
    promise("shadows: the command ran", (folder / "foo.log").exists() and (folder / "net.log").exists())
    left = sorted(path.name for part in ("new", "failed") for path in (updates / part).iterdir())
    promise("shadows: no file is left", left == [], left)


def define(services, key, outfile, form, log, **more):
    (services / f"{key}.json").write_text(json.dumps({
        "key": key, "outfile": str(outfile), "outformat": form, "notifycmd": f"echo told >> {log}", **more}))


def put(updates, name, text):
    """As a program of the device does."""
    (updates / "tmp" / name).write_text(text)
    (updates / "tmp" / name).rename(updates / "new" / name)
