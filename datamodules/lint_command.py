"""`mmcl shards lint`: name what is wrong or suspicious, and say whom the set serves."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcl.datamodules.faults import Finding
from mmcl.datamodules.lint import Chunk, Examined, decode_chunk, examine
from mmcl.datamodules.lint_set import examine_set, serves, totals
from mmcl.datamodules.listing import given_shards
from mmcl.datamodules.spread import add_workers, spread
from mmcl.errors import RunError

HELP = "name damaged, double, missing, undecodable and suspicious members; exit code 1 if something is wrong"
FORMAT = "mmcl.lint/1"
_CHUNK = 64


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the action."""
    parser.add_argument("shards", nargs="+", help="tar files, patterns like train-{000..099}.tar, or folders")
    parser.add_argument(
        "--quick", action="store_true", help="structure, checksums, texts and labels; decode nothing else"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found for a program to read")
    add_workers(parser)


def run(arguments: Namespace) -> int:
    """Look at every byte, decode every member, and say what was found.

    Returns:
        1 if something is wrong, 0 if at most something is suspicious.

    Raises:
        ConfigError: no such shard.
        RunError: the file for `--json` cannot be written.
    """
    shards = given_shards(arguments.shards)
    found = list(spread(examine, shards, arguments.workers, "read", len(shards)))
    findings = [finding for examined in found for finding in examined.findings]
    findings += examine_set(found)
    if not arguments.quick:
        chunks = sum(-(-len(e.index) // _CHUNK) for e in found)
        for more in spread(decode_chunk, _chunks(found), arguments.workers, "decode", chunks):
            findings += more
    places = {shard: place for place, shard in enumerate(shards)}
    findings.sort(key=lambda f: places.get(f.shard, -1))
    report = _report(found, findings, arguments.quick)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"--json {arguments.json} cannot be written: {error.strerror}") from error
    sys.stdout.writelines(f"{line}\n" for line in _lines(report))
    return 1 if any(f.is_fault for f in findings) else 0


def _chunks(found: Sequence[Examined]) -> Iterator[Chunk]:
    for examined in found:
        for begin in range(0, len(examined.index), _CHUNK):
            samples = range(begin, min(begin + _CHUNK, len(examined.index)))
            yield examined.shard, [(examined.index.key(i), examined.index.members(i)) for i in samples]


def _report(found: Sequence[Examined], findings: Sequence[Finding], quick: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "quick": quick,
        "totals": totals(found),
        "faults": dict(Counter(f.kind for f in findings if f.is_fault)),
        "suspicious": dict(Counter(f.kind for f in findings if not f.is_fault)),
        "serves": serves(found),
        "shards": [{"path": e.shard, "samples": len(e.index), "bytes": e.size} for e in found],
        "findings": [{**f._asdict(), "level": "fault" if f.is_fault else "suspicious"} for f in findings],
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """What a person reads: a line for each finding, as compilers write them, and a summary."""
    for finding in report["findings"]:
        note = "" if finding["level"] == "fault" else " (suspicious)"
        # Names out of archives need not be UTF-8.
        text = finding["text"].encode("utf-8", "backslashreplace").decode()
        yield f"{finding['shard']}: {finding['kind']}{note}: {text}"
    yield ", ".join(f"{name} {count}" for name, count in report["totals"].items())
    for level in ("faults", "suspicious"):
        kinds = ", ".join(f"{kind} {count}" for kind, count in report[level].items()) or "none"
        yield f"{level}: {kinds}"
    if report["totals"]["samples"]:
        yield from _serving(report["serves"]["mmcl"], report["serves"]["webdataset"])
    if report["quick"]:
        yield "quick: pictures, recordings and arrays were not decoded"


def _serving(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    yield f"mmcl: any number of ranks and workers; a batch of at most {ours['largest_batch']} samples over all ranks"
    even = ", ".join(map(str, theirs["even"][:12])) + (", ..." if len(theirs["even"]) > 12 else "")
    alike = "" if theirs["equal_shards"] else "; its shards differ in samples, so its workers differ in batches"
    yield f"webdataset: at most {theirs['ranks_x_workers']} ranks x workers, evenly at {even or 'none'}{alike}"
