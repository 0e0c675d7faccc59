"""Which addresses are taken, and what is shown of them."""

from __future__ import annotations

import sys

import fsspec
import pytest

from mmcl.datamodules.remote import check_address, identity, name_of, public
from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:curl https://h/a.tar", "would run a shell command"),
        ("file:///etc/passwd", "URL scheme 'file:'"),
        ("ftp://h/a.tar", "URL scheme 'ftp:'"),
        ("local:///etc/passwd", "URL scheme 'local:'"),
        ("simplecache::s3://b/a.tar", "URL scheme 'simplecache:'"),
        ("s3://b/a.tar::file:///etc/passwd", "no plain URL"),
        ("https://h/a.tar::file:///etc/passwd", "no plain URL"),
        ("https:/h/a.tar", "no plain URL"),
        ("http:a.tar", "no plain URL"),
        ("https:///a.tar", "names no file"),
        ("s3://bucket", "names no file"),
        ("s3://key:secret@bucket/a.tar", "names an account"),
        ("https://joe:secret@h/{a,b}*.tar", "a web server lists no files"),
    ],
)
def test_refuses(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        expand_shards([address], "train", remote=True)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_urls_are_expanded_in_order() -> None:
    found = expand_shards(["https://h/a-{08..10}.tar?id={x,y}", "s3://b/{v,t}.tar"], remote=True)
    wanted = [f"https://h/a-{i}.tar?id={q}" for i in ("08", "09", "10") for q in "xy"]
    assert found == [*wanted, "s3://b/v.tar", "s3://b/t.tar"]


def test_one_shard_under_two_addresses_is_listed_twice() -> None:
    signed = "https://h/a.tar?X-Amz-Signature={}&X-Amz-Expires=9"
    with pytest.raises(ConfigError, match=r"listed twice, also as https://h/a\.tar\?\.\.\.$"):
        expand_shards([signed.format("one"), signed.format("two")], remote=True)


def test_globs_ask_the_store() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b", "a", "c"):
        memory.pipe(f"/globs/{name}.tar", b"")
    try:
        assert expand_shards(["memory://globs/[ab].tar"], remote=True) == [f"memory://globs/{n}.tar" for n in "ab"]
        with pytest.raises(ConfigError, match="no shard matches"):
            expand_shards(["memory://globs/x*.tar"], remote=True)
    finally:
        memory.rm("/globs", recursive=True)


def test_what_is_shown_has_no_secrets() -> None:
    text = "cannot open https://joe:secret@h/a.tar?sig=secret, nor 's3://b/a?versionId=secret'"
    assert public(text) == "cannot open https://h/a.tar?..., nor 's3://b/a?...'"


def test_identity_is_without_user_and_signature() -> None:
    for query in ("?X-Amz-Signature=1&X-Amz-Date=2", "?sv=1&sig=2", "?Expires=1&Signature=2&Key-Pair-Id=3"):
        assert identity(f"HTTPS://joe:x@h/d/a.tar{query}#part") == "https://h/d/a.tar"
    assert identity("https://h/get?id=7") == "https://h/get?id=7"


def test_names_in_the_cache() -> None:
    a, b = name_of("https://h/d/a.tar"), name_of("https://u:p@h/d/b.tar")
    assert a.folder == b.folder and (a.file, b.file) == ("a.tar", "b.tar")
    assert name_of("https://h/get?id=1").folder != name_of("https://h/get?id=2").folder
    odd = {name_of(f"https://h/d/{name}").file for name in ("%2e%2e", "a b", "a+b", "..", "", ".lock", "x" * 300)}
    assert len(odd) == 7
    assert not any(name.startswith(".") or "/" in name or "%" in name or len(name) > 150 for name in odd)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    for address, extra in (("gs://b/*.tar", "gs"), ("az://b/*.tar", "azure"), ("abfs://b/*.tar", "azure")):
        check_address(address, "train")
        with pytest.raises(ConfigError, match=rf"not installed: pip install 'mmcl\[{extra}\]'"):
            expand_shards([address], remote=True)


def test_commands_that_look_into_files_refuse_urls() -> None:
    with pytest.raises(ConfigError, match="only local shards are looked into"):
        expand_shards(["https://h/a.tar"])
