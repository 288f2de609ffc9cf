"""Settings: loading a config file, overriding its keys, and checking the whole."""

import ast
import copy
import difflib
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FieldReference

from eir_jax import configs
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words, replacing

CONFIGS = Path(configs.__path__[0])
"""Our own config files: configs/ of the tree, or within the installed package."""
DEEP = (RecursionError, MemoryError)  # of brackets without an end
OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def load_config(
    config: str | os.PathLike[str] | ConfigDict, overrides: Sequence[str] = ()
) -> ConfigDict:
    """Run `get_config()` of a config file and apply the overrides.

    Settings that the file does not name have the values of configs/base.py.

    Args:
      config: a file, or a name: 'digits' is configs/digits.py of ours, from any folder;
        or what a file's `get_config()` returns.
      overrides: command-line words `--config.key=value` (or the value as the next
        word); a value is read as the type that the key has.

    Raises:
      UserError: no such file, no `get_config` in it, an unknown key, a wrong type.
    """
    if isinstance(config, ConfigDict):
        settings = _completed(config, "given")
    else:
        name = os.fspath(config)
        settings = _completed(_run_config_file(find_config(name)), name)
    override(settings, overrides)
    return settings


def find_config(name_or_file: str, folder: str = "") -> Path:
    """Return the file that a name or path means: one that is there, or one of ours.

    Args:
      name_or_file: 'NAME' and, where there is no such file, 'configs/NAME.py' are ours.
      folder: within configs/, where names are looked for: 'grids'.

    Raises:
      UserError: there is none; what is near.
    """
    ours, shown = CONFIGS / folder, Path("configs") / folder
    path = Path(name_or_file).expanduser()
    if path.is_file():
        return path
    is_name = path.suffix != ".py" and path.name == name_or_file
    if (is_name or path.parent == shown) and (ours / f"{path.stem}.py").is_file():
        return ours / f"{path.stem}.py"
    known = sorted(p.stem for p in ours.glob("[!_]*.py"))
    near = difflib.get_close_matches(path.stem, known, cutoff=0.5)
    if is_name:
        path = shown / f"{path.stem}.py"
    way_out = f"give a file, or one of {', '.join(near or known)}"
    if near and not folder:
        way_out = f"did you mean {shown / near[0]}.py?"
    raise UserError(
        f"there is no {'grid' if folder else 'config file'} {in_words(path)}; {way_out}"
    )


@contextmanager
def importing_configs() -> Iterator[None]:
    """Let a config file or grid import: ours as `configs` too, what lies here after it.

    Elsewhere `configs` may be somebody else's, so that it is so for a while alone.
    """
    here = os.getcwd()
    module = ModuleType("configs")
    module.__path__ = [str(CONFIGS), os.path.join(here, "configs")]
    names = [n for n in sys.modules if n == "configs" or n.startswith("configs.")]
    before = {name: sys.modules.pop(name) for name in names}
    sys.modules["configs"] = module
    path = list(sys.path)
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(before)


def override(
    config: ConfigDict, words: Sequence[str], allowed: tuple[str, ...] = ("",)
) -> None:
    """Set what the words `--config.key=value` say.

    Raises:
      UserError: an unknown key, a wrong type, or a key that does not begin with one of
        `allowed`.
    """
    words = list(words)
    while words:
        word = words.pop(0)
        match = OVERRIDE.fullmatch(word)
        if not match:
            raise UserError(f"unknown argument '{word}'{_hint(word)}")
        key, value = match.groups()
        if value is None:
            if not words:
                raise UserError(f"{word} needs a value: {word}=VALUE")
            value = words.pop(0)
        if not key.startswith(allowed):
            raise UserError(
                f"config.{key} was settled by the run; here one may set "
                f"{', '.join(p + '*' if p.endswith('.') else p for p in allowed)}"
            )
        _set(config, key, value)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value}, tuples as they are."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def save_config(config: ConfigDict, path: Path) -> None:
    """Write the settings as JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(path: Path) -> ConfigDict:
    """Read what `save_config` wrote, complete.

    Raises:
      UserError: the file is missing, no JSON, or has a value of a wrong type.
    """
    try:
        return complete(json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        why = f"it holds no {path.name}" if path.parent.is_dir() else "there is none"
        if path.parent.is_file():
            why = "it is a file"
        raise UserError(
            f"{in_words(path.parent)} is no workdir: {why}; give the --workdir "
            "of a run of eir_jax.main"
        ) from None
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; ask its owner for the right to "
            "it"
        ) from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as settings ({error}); put it right, or train anew "
            "in another --workdir"
        ) from None


def complete(saved: dict[str, Any]) -> ConfigDict:
    """Return saved settings with those that came after the run.

    What is lacking has its value in configs/base.py, which does what was done before
    there was the setting.

    Raises:
      KeyError, TypeError, ValueError, AttributeError: these are no settings.
    """
    return _on_base(_as_today(saved))


def _on_base(settings: dict[str, Any]) -> ConfigDict:
    config = _base().copy_and_resolve_references()
    config.update(ConfigDict(_tuples(settings)))
    for key, value in flatten(config).items():
        if value is None:
            raise ValueError(f"{key} has no value")
    return config


def base_values() -> dict[str, Any]:
    """Return {dotted key: value} of configs/base.py, which may be absent."""
    return flatten(_base())


def _as_today(saved: dict[str, Any]) -> dict[str, Any]:
    """Return saved settings in today's words, where an older version had others."""
    saved = {**saved, "intra": dict(saved.get("intra", {}))}
    if "instance" in saved:  # it held the objective's name
        saved["objective"] = saved.pop("instance")["form"]
    if "temperature" in saved and not saved["intra"].get("temperature"):
        saved["intra"]["temperature"] = saved["temperature"]  # 0 meant that
    return saved


@functools.cache
def _base() -> ConfigDict:
    """Return the settings of configs/base.py."""
    return _run_config_file(CONFIGS / "base.py")


def _completed(config: ConfigDict, name: str) -> ConfigDict:
    """Return what a config file gives, with base.py's values for the rest.

    Raises:
      UserError: it sets what is no setting, or to a value of another type.
    """
    known, given = flatten(_base()), flatten(config)
    for key in given:
        if key not in known and not key.startswith("paper."):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"config {name} sets {key}, and there is no such setting{hint} "
                "(configs/base.py has all)"
            )
    try:
        completed = _on_base(config.to_dict())
        _keep_references(copy.deepcopy(config), completed)
        return completed
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"config {name}: {error}; see configs/base.py") from None


def _keep_references(given: ConfigDict, completed: ConfigDict) -> None:
    """Let what follows another setting follow it still: data.resize, image_size."""
    for key, value in given.items(preserve_field_references=True):
        if isinstance(value, FieldReference):
            completed[key] = value
        elif isinstance(value, ConfigDict):
            _keep_references(value, completed[key])


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _run_config_file(path: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        with importing_configs():
            spec.loader.exec_module(module)
            config = module.get_config()
    except (Exception, SystemExit) as error:  # it may call sys.exit
        raise UserError(
            f"config file {path} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns no ml_collections.ConfigDict")
    return config


def _hint(word: str) -> str:
    flags = ["--config", "--workdir"]  # a typo of theirs, and no other command's flag
    near = difflib.get_close_matches(word.split("=")[0], flags, cutoff=0.8)
    if near:
        return f"; did you mean {near[0]}?"
    return "; settings are given as --config.key=value"


def _set(config: ConfigDict, key: str, text: str) -> None:
    known = flatten(config)
    if key not in known:
        inside = [k for k in known if k.startswith(key + ".")]
        if inside:
            raise UserError(f"config.{key} is a group; set one of {', '.join(inside)}")
        last = key.rsplit(".", maxsplit=1)[-1]
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.7) or [
            k for k in known if k.rsplit(".", maxsplit=1)[-1] == last
        ]
        hint = f"did you mean {' or '.join(near)}?" if near else "see configs/base.py"
        raise UserError(f"there is no setting config.{key}; {hint}")
    # What a tuple's elements are an empty one does not tell.
    like = base_values().get(key, known[key])
    *groups, last = key.split(".")
    for group in groups:
        config = config[group]
    try:
        config[last] = _parse(text, like)
    except (*(KeyError, ValueError, SyntaxError, TypeError, OverflowError), *DEEP):
        raise UserError(
            f"config.{key}={text[:200]} is no {_type_name(like)} "
            f"(now {known[key]!r}; see configs/base.py)"
        ) from None


def _parse(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(like, str):
        return text
    if isinstance(like, tuple):
        bare = text.strip().rstrip(",")
        value = ast.literal_eval(bare if bare[:1] in ("(", "[") else f"({bare},)")
        value = value if isinstance(value, tuple | list) else (value,)
        kind = type(like[0]) if like else float
        if not all(type(v) in (int, kind) for v in value):
            raise ValueError(text)
        return tuple(kind(v) for v in value)
    return type(like)(text)


def _type_name(value: Any) -> str:
    if isinstance(value, tuple):
        return f"list of {_type_name(value[0] if value else 0.0)}s, like 1,2"
    return {
        bool: "true or false",
        int: "whole number",
        float: "number",
    }.get(type(value), type(value).__name__)
