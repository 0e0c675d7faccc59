import pytest

from mmcl.datamodules.shards import expand_shards
from mmcl.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    for name in ("a-000", "a-001", "a-002", "b-9", "b-10", "train", "val"):
        (tmp_path / f"{name}.tar").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a-{000..002}.tar"], ["a-000", "a-001", "a-002"]),
        (["a-{002..001}.tar"], ["a-002", "a-001"]),
        (["b-{9..10}.tar"], ["b-9", "b-10"]),
        (["{val,train}.tar", "a-001.tar"], ["val", "train", "a-001"]),
        (["a-*.tar"], ["a-000", "a-001", "a-002"]),
    ],
)
def test_expands_in_order(folder, patterns, names):
    assert expand_shards([f"{folder}/{p}" for p in patterns]) == [f"{folder}/{n}.tar" for n in names]


def test_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert expand_shards(["val.tar"]) == ["val.tar"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["{0}/a-{{000..003}}.tar"], "a-003.tar does not exist"),
        (["{0}/c-*.tar"], "no shard matches"),
        (["{0}"], "is a folder"),
        (["{0}/val.tar", "{0}/v*.tar"], "listed twice"),
        (["pipe:cat {0}/val.tar"], "would run a shell command"),
        (["PIPE:cat {0}/val.tar"], "would run a shell command"),
        (["https://example.org/a.tar"], "only local shards"),
        (["s3://bucket/a.tar"], "only local shards"),
        (["file:{0}/val.tar"], "shards are read from local paths"),
    ],
)
def test_refuses(folder, patterns, message):
    with pytest.raises(ConfigError, match=message):
        expand_shards([p.format(folder) for p in patterns], "train")
