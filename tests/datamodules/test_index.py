import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from mmcl.datamodules import write_shard
from mmcl.datamodules.index import index_places, load_index
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError
from mmcl.stream import Source


@pytest.fixture
def shard(tmp_path, make_samples):
    path = tmp_path / "a.tar"
    write_shard(path, make_samples(20))
    return path


def add(tar, name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def raw_tar(path, *members, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def test_holds_what_tarfile_reads(shard):
    index = load_index(str(shard))
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}
    assert len(index) == 20
    for sample in range(len(index)):
        for member in index.members(sample):
            data = content[member.offset : member.offset + member.size]
            assert data == files.pop(f"{index.key(sample)}.{member.extension}")
    assert not files


def test_is_kept_and_reused(shard, monkeypatch):
    first = load_index(str(shard))
    assert (shard.parent / "a.tar.index").is_file()
    monkeypatch.setattr("mmcl.datamodules.index.scan", None)
    again = load_index(str(shard))
    assert again.extensions == first.extensions
    assert again.keys == first.keys
    for name in ("key_ends", "starts", "extension", "block", "size", "crc", "value"):
        assert np.array_equal(getattr(again, name), getattr(first, name))


def test_is_built_anew_when_the_shard_changes(shard, make_samples):
    load_index(str(shard))
    write_shard(shard, make_samples(30))
    assert len(load_index(str(shard))) == 30
    write_shard(shard, make_samples(30, first=100))
    os.utime(shard, ns=(0, 0))
    assert load_index(str(shard)).key(0) == "s00100"


def test_is_built_anew_when_it_is_broken(shard, caplog):
    load_index(str(shard))
    index = shard.parent / "a.tar.index"
    index.write_bytes(index.read_bytes()[:100])
    assert len(load_index(str(shard))) == 20
    assert "cannot be read" in caplog.text


def test_goes_to_the_cache_where_the_folder_is_not_writable(shard, monkeypatch):
    beside, cache = index_places(str(shard))
    beside.mkdir()  # nothing can be renamed onto a folder that is not empty
    (beside / "x").touch()
    assert len(load_index(str(shard))) == 20
    assert cache.is_file()
    monkeypatch.setattr("mmcl.datamodules.index.scan", None)
    assert len(load_index(str(shard))) == 20
    assert [p.name for p in shard.parent.iterdir() if p.name.startswith(".")] == []


def test_several_processes_may_build_it(shard):
    with ProcessPoolExecutor(3) as pool:
        assert list(pool.map(len, pool.map(load_index, [str(shard)] * 6))) == [20] * 6


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def overwrite(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


# Every sample has three members of one block each: a header every 1024 bytes.
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: cut(p, 1024 * 30 + 512 + 3), "ends inside member 's00010.png'"),
        (lambda p: cut(p, 1024 * 30 + 100), "ends inside the header at byte 30720"),
        (lambda p: cut(p, 1024 * 30), "ends at byte 30720 without an end mark"),
        (lambda p: overwrite(p, 1024 * 30, b"\xff" * 512), "the header at byte 30720 is overwritten"),
        (lambda p: overwrite(p, 1024 * 30, bytes(512)), "data after the end mark at byte 30720"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.write_bytes(p.read_bytes() * 2), "data after the end mark"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(2000)), "compressed (gzip)"),
        (lambda p: p.write_bytes(bytes(10240)), "no samples"),
        (lambda p: p.write_bytes(b"not a tar at all" * 100), "the header at byte 0"),
    ],
)
def test_finds_damage(shard, damage, message):
    damage(shard)
    with pytest.raises(ConfigError) as error:
        load_index(str(shard))
    assert message in str(error.value)
    assert str(shard) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x"), ("a.txt", b"y")], "sample 'a' has two members 'txt'"),
        ([("a.txt", b"x"), ("b.txt", b"y"), ("a.txt", b"x")], "sample 'a' comes twice"),
        ([("a.txt", b"x"), ("b.txt", b"y"), ("a.cls", b"1")], "the members of sample 'a' do not stand together"),
        ([("a.png", b"")], "member 'a.png' is empty"),
    ],
)
def test_finds_what_does_not_belong(tmp_path, members, message):
    with pytest.raises(ConfigError, match=message):
        load_index(str(raw_tar(tmp_path / "a.tar", *members)))


def test_finds_members_without_data(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png")
        add(tar, "b.png", b"", type=tarfile.LNKTYPE, linkname="a.png")
    with pytest.raises(ConfigError, match=r"'b\.png' is no regular file"):
        load_index(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    keys = ["k" * 300, "dir/" + "j" * 150, "käse/ümläut", "plain"]
    path = raw_tar(tmp_path / "a.tar", *((f"{key}.txt", key.encode()) for key in keys), format=form)
    index = load_index(str(path))
    assert [index.key(i) for i in range(4)] == keys
    for i, key in enumerate(keys):
        (member,) = index.members(i)
        assert path.read_bytes()[member.offset :][: member.size] == key.encode()


def test_folders_and_metadata_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, "__meta__/info.json", b"{}")
        add(tar, "README", b"no extension")
        add(tar, "folder/a.txt", b"x")
    index = load_index(str(tmp_path / "a.tar"))
    assert [index.key(i) for i in range(len(index))] == ["folder/a"]


def test_another_shard_under_the_same_name_is_read(shard, make_samples):
    """Also in one process, which has the first one open."""
    source = Source([str(shard)])
    assert SourceReader(source).read(3)["text"] == "caption 3"
    write_shard(shard, make_samples(20, first=50))
    assert SourceReader(source).read(3)["text"] == "caption 53"
