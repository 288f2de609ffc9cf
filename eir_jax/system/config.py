"""Settings: loading a config file, overriding its keys, and checking the whole."""

import ast
import difflib
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words, replacing

BASE = Path(__file__).parents[2] / "configs" / "base.py"
DEEP = (RecursionError, MemoryError)  # of brackets without an end
OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run `get_config()` of the Python file at `path` and apply the overrides.

    Args:
      path: e.g. 'configs/digits.py'.
      overrides: command-line words `--config.key=value` (or the value as the next
        word); a value is read as the type that the key has.

    Raises:
      UserError: no such file, no `get_config` in it, an unknown key, a wrong type.
    """
    config = _run_config_file(path)
    override(config, overrides)
    return config


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
    except FileNotFoundError:
        why = f"it holds no {path.name}" if path.parent.is_dir() else "there is none"
        raise UserError(
            f"{in_words(path.parent)} is no workdir: {why}; give the --workdir "
            "of a run of eir_jax.main"
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
    config = _base().copy_and_resolve_references()
    config.update(ConfigDict(_tuples(_as_today(saved))))
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
    """Return the settings of configs/base.py; none where the package is alone."""
    return _run_config_file(str(BASE)) if BASE.is_file() else ConfigDict()


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _run_config_file(path: str) -> ConfigDict:
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            file.name, [p.name for p in Path("configs").glob("*.py")], cutoff=0.5
        )
        hint = f"; did you mean configs/{near[0]}?" if near else ""
        raise UserError(f"there is no config file {in_words(path)}{hint}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; a config file ends in .py")
    if os.getcwd() not in sys.path:  # for `from configs import base`
        sys.path.insert(0, os.getcwd())
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UserError(
            f"config file {path} fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns no ml_collections.ConfigDict")
    return config


def _hint(word: str) -> str:
    near = difflib.get_close_matches(word.split("=")[0], ["--config", "--workdir"])
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
