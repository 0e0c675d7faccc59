"""The rules of the house: who imports whom, how long a file may be, what a wheel carries."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import mmcl

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("strategies", "datamodules", "benchmarks", "configs")
HEAVY = {"torch", "lightning", "numpy", "open_clip", "transformers", "jsonargparse", "matplotlib", "webdataset"}

# Files of the core that are one room together; every other file or folder of `mmcl/` is a room of its own.
PARTS = {
    "cli": {"cli", "commands", "data_command", "dry_run", "export", "flags", "predict", "shards_command", "wording"},
    "tools": {"archives", "assets", "batch_norm", "collate", "distributed", "plugins", "presets", "seeds", "weights"},
    "strategy": {"contract", "strategy"},
    "runner": {
        *("api", "checkpoint", "compose", "engine", "evaluate", "foresight", "identity", "interrupt", "needs"),
        *("progress", "reach", "record", "run_folder", "runner", "session", "test_time", "trainer", "training"),
    },
}

# Which rooms of the core a room may import, beside itself and `errors`. `docs/architecture.md` has the same table.
CONTRACT = {"outputs", "stream", "strategy"}
CORE = {
    "__init__": {"runner", "strategy", "stream"},
    "__main__": {"cli"},
    "errors": set(),
    "functional": set(),
    "outputs": set(),
    "stream": {"schedule"},
    "tools": {"outputs"},
    "schedule": {"functional"},
    "strategy": {"outputs", "schedule", "stream"},
    "replay": {"functional", "stream"},
    "metrics": {"functional", "tools", *CONTRACT},
    "modules": {"functional", "schedule", "tools", *CONTRACT},
    "runner": {"metrics", "modules", "schedule", "tools", *CONTRACT},
    "report": {"metrics", "stream"},
    "cli": {"metrics", "modules", "report", "runner", "schedule", "tools", *CONTRACT},
}


def sources() -> list[Path]:
    """Python files of the package, under their real paths."""
    folders = [ROOT / name for name in ("mmcl", *LINKED)]
    return sorted(path for folder in folders for path in folder.rglob("*.py") if not is_link(path))


def is_link(path: Path) -> bool:
    return any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "mmcl" else ("mmcl", *parts))


def package_of(path: Path) -> str:
    """The package that relative imports in this file start from."""
    return module_name(path).rpartition(".")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that a file imports, wherever in the file the statement is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package_of(path).split(".")
                base = ".".join([*anchor[: len(anchor) - node.level + 1], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """`mmcl.metrics.matrix.X` -> `metrics`, `mmcl.engine` -> `runner`; a name of `mmcl` itself -> `__init__`."""
    second = name.split(".")[1]
    if second in mmcl.__all__:
        return "__init__"
    return next((whole for whole, parts in PARTS.items() if second in parts), second)


def test_version_is_the_same_everywhere() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert mmcl.__version__ == metadata.version("mmcl") == declared
    assert f"## [{declared}]" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_resolve() -> None:
    for name in mmcl.__all__:
        assert getattr(mmcl, name) is not None
    assert set(mmcl.__all__) <= set(dir(mmcl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mmcl.nothing


def test_links_point_to_the_top_level() -> None:
    for name in LINKED:
        assert (ROOT / "mmcl" / name).resolve() == ROOT / name
        assert (ROOT / name / "__init__.py").is_file(), f"{name}/__init__.py is missing: a wheel would leave {name} out"


def test_every_folder_with_python_is_a_package() -> None:
    bare = {path.parent for path in sources() if not (path.parent / "__init__.py").is_file()}
    assert not bare, f"add an __init__.py, or a wheel leaves these out: {sorted(map(str, bare))}"


def test_import_mmcl_is_light() -> None:
    code = f"import sys, mmcl; mmcl.__version__; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_rooms_import_what_they_may() -> None:
    wrong = []
    for path in sources():
        if path.relative_to(ROOT).parts[0] != "mmcl":
            continue
        own = room(module_name(path))
        assert own in CORE, f"mmcl/{own} is new: say in PARTS or CORE and in docs/architecture.md where it belongs"
        for line, name in imports(path):
            if name.startswith("mmcl.") and room(name) not in CORE[own] | {own, "errors"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_plug_ins_do_not_touch_private_parts() -> None:
    wrong = []
    for path in sources():
        own = path.relative_to(ROOT).parts[0]
        for line, name in imports(path):
            private = any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
            if name.startswith("mmcl.") and private and own in LINKED and room(name) != own:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_imported_by_its_bare_folder_name() -> None:
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports(path)
        if name.split(".")[0] in LINKED
    ]
    assert not wrong, "\n".join(wrong)


def test_functional_knows_no_framework() -> None:
    banned = {"lightning", "open_clip", "transformers", "webdataset", "jsonargparse"}
    for path in (ROOT / "mmcl" / "functional").rglob("*.py"):
        found = {name.split(".")[0] for _, name in imports(path)} & banned
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_files_and_functions_are_short() -> None:
    wrong = []
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        text, where = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        limit = 200 if where.parts[0] == "strategies" else 400
        if (lines := text.count("\n") + 1) > limit:
            wrong.append(f"{where} has {lines} lines (limit {limit})")
        if where.parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    wrong.append(f"{where}:{node.lineno} {node.name} has {length} lines (limit 60)")
    assert not wrong, "\n".join(wrong)


def test_every_hook_of_a_strategy_is_documented() -> None:
    tree = ast.parse((ROOT / "mmcl" / "strategy.py").read_text(encoding="utf-8"))
    (base,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Strategy")
    methods = [node for node in base.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert methods
    assert not [method.name for method in methods if not ast.get_docstring(method)]


def test_every_config_parses_and_names_its_command() -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert isinstance(yaml.safe_load(text), dict), path
        first = text.splitlines()[0]
        assert first.startswith("#") and "mmcl " in first, f"{path.name}: the first line is the command that runs it"


def test_tracked_files_are_small() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    sizes = {path: (ROOT / path).stat().st_size for path in tracked() if (ROOT / path).is_file()}
    assert not {str(path): size for path, size in sizes.items() if size > 8_000_000}
    pocket = [path for path in sizes if path.is_relative_to("benchmarks/pocket")]
    in_git = sum(len(zlib.compress((ROOT / path).read_bytes())) for path in pocket)  # git packs the tars' padding away
    assert in_git < 15_000_000


@pytest.mark.slow
def test_wheel_carries_code_and_data(tmp_path: Path) -> None:
    """The wheel holds every package and data file under `mmcl/`, and no top-level `strategies`."""
    copy = tmp_path / "checkout"  # building in place would leave build/ behind, and the next wheel would carry it
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("mmcl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mmcl", f"mmcl-{mmcl.__version__}.dist-info"}
    package = [path for path in tracked("mmcl", *LINKED) if not (ROOT / path).is_symlink()]
    missing = sorted(name for name in map(in_wheel, package) if name not in names)
    assert not missing, f"not in the wheel, see package-data in pyproject.toml: {missing}"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def tracked(*folders: str) -> list[Path]:
    """Files that git knows and that exist, relative to the root: what git ignores is not shipped."""
    done = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(name) for name in done.stdout.split("\0") if name]
    return [path for path in paths if (ROOT / path).exists()]


def in_wheel(path: Path) -> str:
    return path.as_posix() if path.parts[0] == "mmcl" else f"mmcl/{path.as_posix()}"
