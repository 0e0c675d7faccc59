"""Config files by name: presets that ship with mmcl, and short names inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmcl import plugins
from mmcl.errors import ConfigError, near

FOLDER = Path(__file__).resolve().parent / "configs"


def listing() -> dict[str, str]:
    """Preset -> its first comment line, the command that runs it."""
    found = {}
    for file in sorted(FOLDER.rglob("*.yaml")):
        name = file.relative_to(FOLDER).with_suffix("").as_posix()
        first = file.read_text(encoding="utf-8").split("\n", 1)[0]
        found[name] = first.removeprefix("#").strip()
    return found


def find(name: str) -> Path:
    """The file behind a path or a preset's name, with or without folder and suffix.

    Raises:
        ConfigError: there is neither; the message gives near names.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        raise ConfigError(f"--config {name} is a run folder; give --config {path / 'config.yaml'}")
    known = listing()
    stem = name.removesuffix(".yaml").removeprefix("configs/")
    for preset in known:
        if stem in (preset, preset.rsplit("/", 1)[-1]):
            return FOLDER / f"{preset}.yaml"
    raise ConfigError(f"--config {name}: no such file or preset; {near(stem, known, 'mmcl list configs')}")


def load(path: Path) -> dict[str, Any]:
    """A config with short names of strategies, modules and benchmarks written out.

    Raises:
        ConfigError: the file is not valid YAML or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; it must be a mapping with keys such as model, strategies, data")
    expand(content)
    return content


def expand(content: dict[str, Any]) -> None:
    """Write out short names where a plug-in is expected, in place.

    Raises:
        ConfigError: a name that is unknown, with near names.
    """
    if content.get("model") is not None:
        content["model"] = full("modules", content["model"])
    if "strategies" in content:
        strategies = content["strategies"] or []
        if isinstance(strategies, (str, dict)):
            strategies = [strategies]
        content["strategies"] = [full("strategies", s) for s in strategies]
    data = content.get("data")
    if isinstance(data, dict) and "stream" in data:
        data["stream"] = full("benchmarks", data["stream"])


def full(kind: str, value: Any) -> Any:
    """A plug-in by name, or a mapping with `class_path`, with the whole import path.

    Args:
        kind: of plug-in.
        value: as it was written; what is neither is left as it is.

    Raises:
        ConfigError: a name that is unknown, with near names.
    """
    if isinstance(value, str):
        return {"class_path": plugins.class_path(kind, value)}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        value["class_path"] = plugins.class_path(kind, value["class_path"])
        if kind == "strategies":
            _expand_arguments(value.get("init_args"))
        inner = value.get("init_args")
        if kind == "benchmarks" and isinstance(inner, dict) and "stream" in inner:  # a stream made of another one
            inner["stream"] = full(kind, inner["stream"])
    elif kind == "benchmarks" and isinstance(value, dict) and "class_path" not in value and "init_args" not in value:
        return {"class_path": "mmcl.stream.Stream", "init_args": value}
    return value


def _expand_arguments(arguments: Any) -> None:
    """Strategies that a strategy takes (an adapter) have short names too."""
    for inner in arguments.values() if isinstance(arguments, dict) else ():
        if isinstance(inner, dict) and inner.get("class_path") in plugins.listing("strategies"):
            full("strategies", inner)


def default_run_dir(arguments: list[str]) -> tuple[Path, list[str]]:
    """Where a run goes: `--run_dir`, else the first config's `run_dir`, else ``runs/`` and its name.

    Returns:
        The folder, and the arguments without `--run_dir`.

    Raises:
        ConfigError: `--run_dir` without a folder.
    """
    rest: list[str] = []
    folder: Path | None = None
    config: str | None = None
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        if name == "--run_dir":
            value = value if equals else next(items, "")
            if not value or (not equals and value.startswith("--")):
                raise ConfigError("--run_dir has no value; give it one, as in --run_dir=runs/NAME")
            folder = Path(value)
            continue
        rest.append(item)
        if name in ("--config", "-c") and config is None:
            if not equals:
                value = next(items, "")
                rest.append(value)
            config = value
    return folder or _folder_of(config), rest


def _folder_of(config: str | None) -> Path:
    if config is None:
        return Path("runs/run")
    path = Path(config)
    if path.is_file() and (path.parent / "identity.json").exists():
        return path.parent
    if "run_dir" in (content := load(find(config))):
        return Path(content["run_dir"])
    name = config.removesuffix(".yaml")
    own = name.startswith("configs/") or not path.is_file()
    return Path("runs") / (name.removeprefix("configs/") if own else path.stem)
