import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmcl.datamodules import write_shard
from mmcl.errors import ConfigError
from mmcl.stream import Source


def test_equal_samples_give_equal_bytes(tmp_path, make_samples):
    assert write_shard(tmp_path / "a.tar", make_samples(5)) == 5
    write_shard(str(tmp_path / "b.tar"), iter(make_samples(5)))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in tar} == {(0, 0, "", "", 0, 0o644)}


def test_nothing_half_written_stays(tmp_path, make_samples):
    def failing():
        yield from make_samples(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"__key__": "a.b", "txt": "x"}, "'a.b' is no sample key"),
        ({"txt": "x"}, "'' is no sample key"),
        ({"__key__": "s00001", "txt": "x"}, "two samples have the key 's00001'"),
        ({"__key__": "a"}, "has no members"),
        ({"__key__": "a", "pkl": b"x"}, "would never be read"),
        ({"__key__": "a", "cls": "cat"}, "type str cannot be written as 'cls'"),
        ({"__key__": "a", "png": "x.png"}, "type str cannot be written as 'png'"),
    ],
)
def test_refuses(tmp_path, make_samples, sample, message):
    with pytest.raises(ConfigError, match=message):
        write_shard(tmp_path / "a.tar", [*make_samples(3), sample])


def test_webdataset_reads_ours(tmp_path):
    samples = [
        {
            "__key__": f"ordner/ü{i}",
            "png": Image.new("RGB", (3, 2), (i, 0, 0)),
            "txt": f"Käse {i}",
            "cls": i,
            "json": {"a": [i]},
            "npy": np.arange(i + 1),
        }
        for i in range(4)
    ]
    write_shard(tmp_path / "a.tar", samples)
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [s["__key__"] for s in found] == [s["__key__"] for s in samples]
    for i, sample in enumerate(found):
        assert sample["txt"].decode() == f"Käse {i}" and sample["cls"] == str(i).encode()
        assert Image.open(io.BytesIO(sample["png"])).getpixel((0, 0)) == (i, 0, 0)
        assert np.array_equal(np.load(io.BytesIO(sample["npy"])), np.arange(i + 1))


def test_we_read_webdatasets(tmp_path, make_samples, make_data):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for sample in make_samples(9):
            sink.write(sample)
    source = Source([str(tmp_path / "a.tar")])
    data = make_data(source)
    data.check()
    (batch,) = data.eval_loader(source)
    assert batch["__key__"] == [f"s{i:05d}" for i in range(9)]
    assert batch["image"][:, 0, 1, 1].tolist() == list(range(9))
    assert batch["text"][:, 1].tolist() == list(range(9))
    assert batch["labels"].tolist() == [i % 4 for i in range(9)]
