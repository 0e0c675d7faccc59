"""Fetching: archives made here, and clients that copy them instead of asking a registry."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmcl import assets
from mmcl.archives import Client, unpack
from mmcl.assets import Asset, Package
from mmcl.errors import ConfigError, RunError

CLIENT = """#!{python} -IS
import pathlib, shutil, sys
shelf, pinned = pathlib.Path({shelf!r}), sys.argv[-1]
with (shelf / "log").open("a") as log:
    log.write(pinned + chr(10))
found = sorted((shelf / "archives").glob(pinned + ".*"))
if not found:
    sys.exit("WARNING: an old client" + chr(10) + "ERROR: no " + pinned + " in the registry" + chr(10) + "ERROR: bye")
where = [b for a, b in zip(sys.argv, sys.argv[1:]) if a in ("--dest", "--pack-destination")] or ["."]
shutil.copy(found[0], where[0])
"""
PINNED: dict[Client, str] = {"pip": "==", "npm": "@", "apt": "="}


def tar(files: Mapping[str, bytes], links: Mapping[str, str], compression: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return stream.getvalue()


def deb(data: bytes) -> bytes:
    """An ar archive as Debian writes it; the first members have an odd length."""
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("control.tar.xz", b"odd"), ("data.tar.xz/", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def archive(client: Client, files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    if client == "pip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return stream.getvalue()
    if client == "npm":
        return tar(files, links or {}, "gz")
    return deb(tar(files, links or {}, "xz"))


def copy_text(unpacked: Mapping[str, Path], out: Path) -> None:
    (out / "text").write_bytes(b"".join((unpacked[name] / "data/text").read_bytes() for name in sorted(unpacked)))


class Shop:
    """A registry of three clients, and a catalogue that the test fills."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.known = folder, dict[str, Asset]()
        (folder / "archives").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in ("pip", "npm", "apt-get"):
            script = folder / "bin" / name
            script.write_text(CLIENT.format(python=sys.executable, shelf=str(folder)))
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setenv("MMCL_CACHE", str(folder / "cache"))
        monkeypatch.setattr(assets, "catalogue", lambda: self.known)

    def package(self, client: Client = "pip", name: str = "thing", content: bytes | None = None) -> Package:
        content = archive(client, {"data/text": name.encode()}) if content is None else content
        (self.folder / "archives" / f"{name}{PINNED[client]}1.0.file").write_bytes(content)
        return Package(client, name, "1.0", hashlib.sha256(content).hexdigest())

    def asset(self, *packages: Package, name: str = "things", **changes: Any) -> Asset:
        settings: dict[str, Any] = {"build": copy_text, "megabytes": 0.1} | changes
        self.known[name] = Asset(
            name=name, title="Some things", licence="MIT", source="A maker", packages=packages, **settings
        )
        return self.known[name]

    @property
    def downloads(self) -> list[str]:
        return (self.folder / "log").read_text().split() if (self.folder / "log").is_file() else []

    @property
    def left(self) -> list[str]:
        """What lies in the cache, without locks."""
        cache = self.folder / "cache"
        return sorted(
            str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.parent.name not in ("locks",)
        )


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path / "shop", monkeypatch)


def quiet(line: str) -> None:
    assert line


def test_archives_of_the_three_clients_are_unpacked_and_built(shop: Shop) -> None:
    packages = [shop.package("pip", "a"), shop.package("npm", "b"), shop.package("apt", "c")]
    shop.asset(*packages)
    lines: list[str] = []
    place = assets.get("things", lines.append)
    assert place == assets.folder("things") == shop.folder / "cache/assets/things"
    assert (place / "text").read_text() == "abc"
    assert shop.downloads == ["a==1.0", "b@1.0", "c=1.0"]
    assert [line.split()[0] for line in lines] == ["downloading"] * 3 + ["making"]
    record = json.loads((place / "asset.json").read_text())
    assert (record["name"], record["licence"], record["source"]) == ("things", "MIT", "A maker")
    assert [(p["name"], p["version"], p["sha256"]) for p in record["packages"]] == [
        (p.name, p.version, p.sha256) for p in packages
    ]


def test_what_is_here_is_not_fetched_again(shop: Shop) -> None:
    asset = shop.asset(shop.package())
    before = assets.get("things", quiet)
    (before / "text").write_text("kept")
    lines: list[str] = []
    assert assets.get("things", lines.append) == before
    assert (before / "text").read_text() == "kept" and not lines
    shop.known["things"] = replace(asset, recipe=2)  # its build writes something else now
    with pytest.raises(ConfigError, match="asset 'things' is not here; fetch it: mmcl data get things"):
        assets.folder("things")
    assets.get("things", quiet)
    assert (before / "text").read_text() == "thing"
    assert shop.downloads == ["thing==1.0"]  # the archive was still there


def test_what_an_asset_needs_comes_first(shop: Shop) -> None:
    def build(unpacked: Mapping[str, Path], out: Path) -> None:
        (out / "text").write_text((assets.folder("things") / "text").read_text() + "!")

    shop.asset(shop.package())
    shop.asset(name="more", needs=("things",), build=build)
    assert (assets.get("more", quiet) / "text").read_text() == "thing!"


def test_what_was_made_of_an_earlier_one_is_made_again(shop: Shop) -> None:
    def adding(name: str, mark: str) -> Callable[[Mapping[str, Path], Path], None]:
        def build(unpacked: Mapping[str, Path], out: Path) -> None:
            (out / "text").write_text((assets.folder(name) / "text").read_text() + mark)

        return build

    def other(unpacked: Mapping[str, Path], out: Path) -> None:
        (out / "text").write_text("other")

    things = shop.asset(shop.package())
    shop.asset(name="more", needs=("things",), build=adding("things", "!"))
    shop.asset(name="most", needs=("more",), build=adding("more", "?"))
    assert (assets.get("most", quiet) / "text").read_text() == "thing!?"
    shop.known["things"] = replace(things, title="The same things")
    lines: list[str] = []
    assets.get("most", lines.append)
    assert not lines
    for changed in (
        replace(things, recipe=2, build=other),
        replace(things, packages=(shop.package(content=archive("pip", {"data/text": b"newer"})),)),
    ):
        shop.known["things"] = changed
        assert not any(assets.here(asset) for asset in shop.known.values())
        found = (assets.get("most", quiet) / "text").read_text()
        assert found == ("other!?" if changed.recipe == 2 else "newer!?")


def test_another_archive_than_the_pinned_one_is_refused(shop: Shop) -> None:
    package = replace(shop.package(), sha256="0" * 64)
    shop.asset(package)
    with pytest.raises(
        RunError, match=rf"thing 1\.0: the archive has SHA-256 [0-9a-f]{{64}}, but {'0' * 64} is pinned"
    ):
        assets.get("things", quiet)
    assert shop.left == []


def test_a_missing_client_and_a_missing_package_are_one_line(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.asset(Package("apt", "nothing", "2", "0" * 64))
    with pytest.raises(
        RunError, match=r"^nothing=2 cannot be downloaded: ERROR: no nothing=2 in .*; run `apt-get update`"
    ):
        assets.get("things", quiet)
    shop.asset(shop.package("npm"))
    monkeypatch.setenv("PATH", str(shop.folder))
    with pytest.raises(ConfigError, match=r"^thing is fetched with npm, and there is no npm here; install it$"):
        assets.get("things", quiet)
    assert shop.left == []


@pytest.mark.parametrize("client", ["pip", "npm", "apt"])
def test_nothing_is_unpacked_outside(client: Client, shop: Shop) -> None:
    files = {"data/text": b"good", "../../outside": b"bad"}
    shop.asset(shop.package(client, content=archive(client, files)))
    with pytest.raises(RunError, match=r"cannot be unpacked: '\.\./\.\./outside' would"):
        assets.get("things", quiet)
    assert len(shop.left) == 1 and shop.left[0].startswith("archives/")
    assert not list(shop.folder.rglob("outside"))


def test_links_stay_inside(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    links = {"data/inner": "text", "data/outer": "../../../etc/passwd", "data/absolute": "/etc/passwd"}
    file.write_bytes(archive("apt", {"data/text": b"good"}, links))
    unpack(file, "apt", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out/data").iterdir()) == ["inner", "text"]
    assert (tmp_path / "out/data/inner").read_text() == "good"


@pytest.mark.parametrize(
    ("client", "content"),
    [("pip", b"no zip"), ("npm", b"no tar"), ("apt", b"no ar"), ("apt", b"!<arch>\n"), ("apt", deb(b"no tar"))],
)
def test_broken_archives_are_refused(client: Client, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(RunError, match="archive cannot be unpacked: "):
        unpack(tmp_path / "archive", client, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_build_leaves_nothing(shop: Shop) -> None:
    def stopped(unpacked: Mapping[str, Path], out: Path) -> None:
        copy_text(unpacked, out)
        raise KeyboardInterrupt

    asset = shop.asset(shop.package(), build=stopped)
    with pytest.raises(KeyboardInterrupt):
        assets.get("things", quiet)
    assert [name.split("/")[0] for name in shop.left] == ["archives"]
    killed = shop.folder / "cache/building/things/content/half"  # no handler runs in a killed process
    killed.parent.mkdir(parents=True)
    killed.touch()
    shop.known["things"] = replace(asset, build=copy_text)
    place = assets.get("things", quiet)
    assert sorted(p.name for p in place.iterdir()) == ["asset.json", "text"]


def test_two_at_a_time_build_once(shop: Shop) -> None:
    built: list[Path] = []

    def slow(unpacked: Mapping[str, Path], out: Path) -> None:
        built.append(out)
        time.sleep(0.1)
        copy_text(unpacked, out)

    shop.asset(shop.package(), build=slow)
    places: list[Path] = []
    threads = [threading.Thread(target=lambda: places.append(assets.get("things", quiet))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len(places) == 3 and len(set(places)) == 1
    assert shop.downloads == ["thing==1.0"]


def test_files_are_as_readable_as_the_user_s_others(shop: Shop) -> None:
    def private(unpacked: Mapping[str, Path], out: Path) -> None:
        copy_text(unpacked, out)
        (out / "text").chmod(0o600)

    shop.asset(shop.package(), build=private)
    place = assets.get("things", quiet)
    (shop.folder / "other").touch()
    assert (place / "text").stat().st_mode == (shop.folder / "other").stat().st_mode


def test_a_cache_that_cannot_be_written_is_one_line(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.asset(shop.package())
    monkeypatch.setenv("MMCL_CACHE", str(shop.folder / "log"))
    (shop.folder / "log").touch()
    with pytest.raises(RunError, match=r"asset 'things' cannot be made in .*/log \(\$MMCL_CACHE\): .*Not a directory"):
        assets.get("things", quiet)


def test_unknown_names_get_a_hint(shop: Shop) -> None:
    shop.asset(shop.package())
    for ask in (assets.folder, lambda name: assets.get(name, quiet)):
        with pytest.raises(ConfigError, match=r"no asset 'thingz'; did you mean things\? \(mmcl data list\)"):
            ask("thingz")


def test_the_cache_is_below_the_home_unless_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MMCL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache() == tmp_path / ".cache/mmcl"
    monkeypatch.setenv("MMCL_CACHE", "~/elsewhere")
    assert assets.cache() == tmp_path / "elsewhere"


def entry(name: str, load: Callable[[], Any]) -> SimpleNamespace:
    return SimpleNamespace(name=name, value=f"package:{name}", load=load)


def test_entry_points_add_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    own = assets.catalogue()
    mine = replace(next(iter(own.values())), name="mine")
    found: list[SimpleNamespace] = [entry("mine", lambda: mine)]
    monkeypatch.setattr(assets, "entry_points", lambda group: found if group == "mmcl.assets" else [])
    assert assets.catalogue() == dict(sorted({**own, "mine": mine}.items()))
    found.append(entry("again", lambda: replace(mine)))
    with pytest.raises(ConfigError, match="two assets are named 'mine'"):
        assets.catalogue()
    found[:] = [entry("text", lambda: "text")]
    with pytest.raises(ConfigError, match=r"asset 'text' \(package:text\) is no mmcl\.assets\.Asset"):
        assets.catalogue()
    found[:] = [entry("broken", lambda: 1 / 0)]
    with pytest.raises(ConfigError, match=r"asset 'broken' .* cannot be imported: division"):
        assets.catalogue()


def test_the_catalogue_is_complete_and_light() -> None:
    known = assets.catalogue()
    assert {"smollm2-135m", "whisper-tiny.en", "mobilenetv2", "minilm", "mobilenet-minilm"} <= set(known)
    for name, asset in known.items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) and asset.title and asset.licence and asset.source
        assert set(asset.needs) <= set(known)
        assert asset.packages or asset.needs
        for package in asset.packages:
            assert re.fullmatch("[0-9a-f]{64}", package.sha256), (name, package.name)
    heavy = {"torch", "numpy", "PIL", "transformers", "safetensors", "timm"}
    code = f"import sys, mmcl.assets; mmcl.assets.catalogue(); print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
