"""Load a YAML file: `extends`, names of sibling files, dotted overrides, strict validation.

Owns how files become one mapping and which file set which key. It depends on no recipe; it
reads no environment, interpolates nothing and runs nothing: what the files say is what runs.

Three directives, valid in any mapping:
  `extends: ../pretrain/stage1`   merge this mapping onto that file (one parent, recursively)
  `metrics: [overlap:score]`      the function `score` of overlap.py beside the file
  `model: tiny`                   a string where a section stands names `configs/model/tiny.yaml`;
                                  a list of names becomes a mapping of name to file content; of a
                                  name with folders, `flan/c3`, the last part is the key
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from openba.errors import UserError, name_hint
from openba.json_types import Json, JsonObject
from openba.units import WRITTEN

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = folder if (folder := _PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The shipped files: installed inside the package, in a checkout beside it."""
SECTIONS = {
    "sources": "source",
    "tasks": "task",
    "benchmarks": "benchmark",
    "clean": "clean",
    "flan": "flan",
    "gate": "gate",
    "model": "model",
    "runtime": "runtime",
}

METRICS = "metrics"
"""A list in which `module:function` names a Python file beside the YAML file."""

_EXPECTED = {
    "dict_type": "expected a section of `key: value` lines",
    "model_type": "expected a section of `key: value` lines",
    "model_attributes_type": "expected a section of `key: value` lines",
    "list_type": "expected a list, such as [a, b]",
    "string_type": "expected text",
}
"""What a file has to have, by the type of pydantic's error, whose own words are Python's."""

M = TypeVar("M", bound=BaseModel)


class ConfigError(UserError):
    """A config file that does not describe a valid recipe; the message names file and key."""


class Config:
    """A merged mapping and, for each dotted leaf, the file (or `--set`) that set it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: JsonObject = {}
        self.origin: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        """Dotted key -> the file that set it; keys of `--set` are not in it."""

    @classmethod
    def read(cls, path: Path, overrides: list[str] | None = None) -> Config:
        """Resolve a file and apply `key.path=value` overrides on top."""
        config = cls(path)
        # Absolute, so that a file reached in two ways is one file in the chain of `extends`.
        config.data = config._resolve(path.resolve(), "", ())
        for override in overrides or []:
            config.override(override)
        return config

    def validate(self, recipe_type: type[M]) -> M:
        """Return the typed recipe; every bad key is reported with the file that set it."""
        try:
            return recipe_type.model_validate(self.data, context=WRITTEN)
        except ValidationError as error:
            details = error.errors()
            lines = [self._explain(detail, recipe_type) for detail in details if detail["type"] != "missing"]
            raise ConfigError("\n".join([*self._name_missing_keys(details), *lines])) from None

    def source_of(self, dotted: str) -> str:
        """Return the file that set this key or the nearest parent of it; '(default)' if none did."""
        parent_key = dotted
        while parent_key:
            if parent_key in self.origin:
                return self.origin[parent_key]
            parent_key = parent_key.rpartition(".")[0]
        return "(default)"

    def folder_of(self, dotted: str) -> Path:
        """Return the folder at which a relative path under this key starts.

        It is that of the file that set the key, also where another file extends it; the working directory for
        `--set`.
        """
        # Not a parent's file: a mapping may be merged from several files in several folders.
        setting_file = self._files.get(dotted)
        return setting_file.parent if setting_file is not None else Path.cwd()

    def _resolve(self, path: Path, prefix: str, chain: tuple[Path, ...]) -> JsonObject:
        # The files whose `extends` led here, the newest last.
        if path in chain:
            raise ConfigError(f"{_short(path)}: extends itself through {_short(chain[-1])}; break the circle")
        return self._merge({}, _read_yaml(path), path, prefix, (*chain, path))

    def _merge(
        self, into: JsonObject, layer: JsonObject, file: Path, prefix: str, chain: tuple[Path, ...]
    ) -> JsonObject:
        layer = dict(layer)
        if (parent := layer.pop("extends", None)) is not None:
            # The parent first, so that the keys of this mapping win.
            parent_file = _find(file, f"{_short(file)}: {prefix}extends", str(parent))
            into = _deep(into, self._resolve(parent_file, prefix, chain))
        for key, value in layer.items():
            dotted = f"{prefix}{key}"
            if key in SECTIONS and _names(value):
                into[key] = self._named(SECTIONS[key], value, file, f"{dotted}.", chain)
                self._set_by_file(dotted, file)
            elif isinstance(value, dict):
                child = into.get(key)
                into[key] = self._merge(
                    child if isinstance(child, dict) else {}, value, file, f"{dotted}.", chain
                )
            else:  # scalars and lists replace
                into[key] = _with_sources(value, file.parent, _short(file)) if key == METRICS else value
                self._set_by_file(dotted, file)
        return into

    def _set_by_file(self, dotted: str, file: Path) -> None:
        self.origin[dotted] = _short(file)
        self._files[dotted] = file

    def _named(
        self, folder: str, value: str | list[str], file: Path, prefix: str, chain: tuple[Path, ...]
    ) -> Json:
        where = f"{_short(file) if chain else '--set'}: {prefix[:-1]}"
        if isinstance(value, str):
            return self._resolve(_find(file, where, f"../{folder}/{value}"), prefix, chain)
        keys = {name: name.rpartition("/")[2] for name in value}
        if len(set(keys.values())) < len(value):
            raise ConfigError(f"{_short(file)}: {prefix[:-1]}: two names end alike; rename one of the files")
        return {
            key: self._resolve(_find(file, where, f"../{folder}/{name}"), f"{prefix}{key}.", chain)
            for name, key in keys.items()
        }

    def set_by(self, dotted: str) -> str:
        """Return the file that set exactly this value, 'default' if the recipe's default stands."""
        key = dotted
        value = None
        while key:
            if key in self.origin and not isinstance(value, dict):
                return self.origin[key]
            key = key.rpartition(".")[0]
            value = self._value(key)
        return "default"

    def _value(self, dotted: str) -> Json:
        node: Json = self.data
        for part in dotted.split(".") if dotted else ():
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def lay_over(self, key: str, layer: JsonObject, origin: str) -> None:
        """Merge a mapping over the section `key`."""
        self.data[key] = _deep(dict(self.data.get(key) or {}), layer)
        self.origin |= dict.fromkeys(flatten(layer, f"{key}."), origin)

    def derive(self, values: JsonObject, origin: str) -> None:
        """Set values that follow from another setting, but where this file itself or `--set` states them."""
        stated = {"--set", _short(self.path.resolve())}
        for key, value in values.items():
            if self.source_of(key) in stated and self._value(key) is not None:
                continue
            *sections, last_part = key.split(".")
            into = self.data
            for section in sections:
                into = into.setdefault(section, {})
            into[last_part] = value
            self.origin[key] = origin
            self._files.pop(key, None)

    def adopt(self, prefix: str, other: Config) -> None:
        """Take over the values and origins of another config below `prefix`, for `openba show`."""
        into = self.data
        for part in prefix.split("."):
            into = into.setdefault(part, {})
        into.update(other.data)
        self.origin |= {f"{prefix}.{key}": file for key, file in other.origin.items()}

    def override(self, text: str) -> None:
        """Apply one `key.path=value`."""
        key, sign, raw = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {text}: write it as key.path=value")
        into = self.data
        parts = key.split(".")
        for depth, part in enumerate(parts[:-1]):
            into = into.setdefault(part, {})
            if not isinstance(into, dict):
                raise ConfigError(f"--set {text}: {'.'.join(parts[: depth + 1])} is a value, not a section")
        try:
            value = yaml.load(raw, _Loader)  # noqa: S506 - a SafeLoader subclass
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: not valid YAML: {' '.join(str(error).split())}") from None
        self.origin = {k: file for k, file in self.origin.items() if not k.startswith(f"{key}.")}
        self.origin[key] = "--set"
        self._files.pop(key, None)
        if parts[-1] in SECTIONS and _names(value):
            value = self._named(SECTIONS[parts[-1]], value, self.path.resolve(), f"{key}.", ())
        into[parts[-1]] = _with_sources(value, Path.cwd(), "--set") if parts[-1] == METRICS else value

    def _name_missing_keys(self, details: list[Json]) -> Iterator[str]:
        """Provide a line for each section that lacks keys."""
        missing_keys: dict[str, list[str]] = {}
        for detail in details:
            if detail["type"] == "missing":
                key_path = detail["loc"]
                sections = [str(part) for part in key_path[:-1] if not _is_tag(part, self.data, key_path)]
                missing_keys.setdefault(".".join(sections), []).append(str(key_path[-1]))
        for section, keys in missing_keys.items():
            file = self._file_of(section) if section else _short(self.path)
            parent, _, name = section.rpartition(".")
            siblings = self._value(parent)
            other_names = [key for key in siblings if key != name] if isinstance(siblings, dict) else []
            hint = name_hint(name, other_names) if file == "--set" else ""
            yield f"{file}: {f'{section}: ' if section else ''}lacks {', '.join(keys)}{hint}"

    def _explain(self, error: Json, model: type[BaseModel]) -> str:
        loc = [part for part in error["loc"]]
        dotted = ".".join(str(part) for part in loc if not _is_tag(part, self.data, loc))
        text = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, "))
        # A check over a whole section begins its message with the key that it is about.
        key, colon, rest = text.partition(": ")
        section = self._value(dotted)
        keys = {*_fields_at(model, loc), *(section if isinstance(section, dict) else ())}
        if error["type"] == "value_error" and colon and key.partition(".")[0] in keys:
            dotted = f"{dotted}.{key}" if dotted else key
            text = rest
        message = f"{self._file_of(dotted)}: {dotted}: {text}"
        if isinstance(error["input"], int | float | str) and error["type"] != "value_error":
            message += f", not {str(error['input'])[:40]}"
        if error["type"] == "extra_forbidden":
            message = f"{self._file_of(dotted)}: {dotted}: unknown key"
            known_keys = _fields_at(model, loc[:-1])
            if close := difflib.get_close_matches(str(loc[-1]), known_keys, 1):
                message += f" (did you mean {close[0]!r}?)"
            elif known_keys:
                message += f" (known here: {', '.join(sorted(known_keys))})"
        return message

    def _file_of(self, dotted: str) -> str:
        """Return the file that set this key, a part of it, or else something beside it."""
        if (file := self.source_of(dotted)) != "(default)":
            return file
        parent_key = dotted
        while parent_key:
            files_below = (file for key, file in self.origin.items() if key.startswith(f"{parent_key}."))
            if (first_file := next(files_below, None)) is not None:
                return first_file
            parent_key = parent_key.rpartition(".")[0]
        return _short(self.path)


def load(path: Path, recipe_type: type[M], overrides: list[str] | None = None) -> M:
    """Read, override and validate one file."""
    return Config.read(path, overrides).validate(recipe_type)


def find_config(kind: str, name: str) -> Path:
    """Return the shipped file `configs/KIND/NAME.yaml`, or the file that a path names.

    Raises:
        ConfigError: neither is there.
    """
    shipped_file = CONFIGS / kind / f"{name}.yaml"
    user_file = Path(name)
    if user_file.suffix in (".yaml", ".yml") and user_file.is_file():
        return user_file
    if shipped_file.exists():
        return shipped_file
    if user_file.is_file():
        raise ConfigError(f"{name}: not a YAML file by its name; rename it to {user_file.stem}.yaml")
    shipped_names = sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))
    raise ConfigError(
        f"{name}: no such {kind}{name_hint(name, shipped_names)}; give a YAML file or one of: "
        f"{', '.join(shipped_names)}"
    )


def flatten(value: Json, prefix: str = "") -> JsonObject:
    """Return nested mappings as one: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if isinstance(value, dict) and value:
        return {
            child_key: child_value
            for key, child in value.items()
            for child_key, child_value in flatten(child, f"{prefix}{key}.").items()
        }
    return {prefix.rstrip("."): value}


class _Loader(yaml.CSafeLoader):  # seven times as fast as yaml.SafeLoader; a pipeline is 148 files
    """Safe YAML that reads 3e-5 as a number (YAML 1.1 requires 3.0e-5) and refuses a repeated key."""

    def construct_mapping(self, node: Json, deep: bool = False) -> dict[Json, Json]:
        seen_keys = set()
        for key_node, _ in node.value:
            if key_node.value in seen_keys:
                line_number = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} twice (line {line_number})"
                )
            seen_keys.add(key_node.value)
        return super().construct_mapping(node, deep)


def _construct_str(loader: _Loader, node: Json) -> Json:
    scalar_value = loader.construct_scalar(node)
    is_plain = not node.style  # "" in libyaml, None in PyYAML: written without quotes
    return float(scalar_value) if is_plain and _is_number(scalar_value) else scalar_value


def _construct_number(loader: _Loader, node: Json) -> Json:
    """Refuse what YAML 1.1 reads as another number than a person does: `010` as 8, `1:30` as 90."""
    number_text = node.value
    if ":" in number_text or re.fullmatch(r"[-+]?0[0-9_]+", number_text):
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{number_text} is read as another number by YAML; write it plainly or in quotes",
            node.start_mark,
        )
    return getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_str)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct_number)


def _read_yaml(path: Path) -> JsonObject:
    try:
        parsed_yaml = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader subclass
    except OSError as error:
        raise ConfigError(f"{_short(path)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_short(path)}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace(' in "<unicode string>",', " in")
        raise ConfigError(f"{_short(path)}: not valid YAML: {reason}") from None
    if parsed_yaml is not None and not isinstance(parsed_yaml, dict):
        raise ConfigError(
            f"{_short(path)}: expected `key: value` lines, found a {type(parsed_yaml).__name__}"
        )
    return parsed_yaml or {}


def _find(file: Path, where: str, reference: str) -> Path:
    """Return the file a reference names: beside the referring file, else among the shipped configs.

    Raises:
        ConfigError: neither is there; the message begins with `where`, the file and key that refer to it.
    """
    file_beside = (file.parent / reference).with_suffix(".yaml").resolve()
    shipped_file = (CONFIGS / "pipeline" / reference).with_suffix(".yaml").resolve()
    if file_beside.exists():
        return file_beside
    if shipped_file.exists():
        return shipped_file
    sibling_names = {path.stem for file in (file_beside, shipped_file) for path in file.parent.glob("*.yaml")}
    places = dict.fromkeys(_short(path) for path in (file_beside, shipped_file))
    raise ConfigError(
        f"{where}: no file {' or '.join(places)}{name_hint(Path(reference).stem, sibling_names)}"
    )


def _with_sources(value: Json, folder: Path, origin: str) -> Json:
    """Replace each `module:function` of a list by its name and the text of its file."""
    if not isinstance(value, list):
        return value
    return [_with_source(item, folder, origin) if isinstance(item, str) else item for item in value]


def _with_source(name: str, folder: Path, origin: str) -> Json:
    module_name, colon, _ = name.partition(":")
    if not colon:
        return name
    path = folder / f"{module_name}.py"
    try:
        return {"name": name, "source": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{origin}: {METRICS}: {name}: cannot read {_short(path)}: {error}") from None


def _short(path: Path) -> str:
    # Shipped files are named from the repository on, the user's own from the working directory on.
    for base in (CONFIGS.parent, Path.cwd()):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def _names(value: Json) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    )


def _is_number(text: str) -> bool:
    try:
        # float() reads more than numbers: `nan` and `infinity` are words in a YAML file, and so is 1_000.
        return text[:1] in "+-.0123456789" and "_" not in text and float(text) is not None
    except ValueError:
        return False


def _deep(into: JsonObject, layer: JsonObject) -> JsonObject:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _deep(into[key], value)
        else:
            into[key] = value
    return into


def _is_tag(key_part: Json, data: Json, key_path: list[Json]) -> bool:
    """Pydantic puts the discriminator of a union into `key_path`; it is no key of the file."""
    config_node = data
    for step in key_path[: key_path.index(key_part)]:
        config_node = config_node.get(step, config_node) if isinstance(config_node, dict) else config_node
    return isinstance(config_node, dict) and key_part not in config_node and key_part != key_path[-1]


def _fields_at(model: type[BaseModel], key_path: list[Json]) -> set[str]:
    nested_models: list[type[BaseModel]] = [model]
    for key_part in key_path:
        annotations = [
            model_type.model_fields[key_part].annotation
            for model_type in nested_models
            if key_part in model_type.model_fields
        ]
        nested_models = [
            model_type for annotation in annotations for model_type in _models_in(annotation)
        ] or nested_models
    return {name for model_type in nested_models for name in model_type.model_fields}


def _models_in(annotation: Json) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for type_argument in get_args(annotation):
        yield from _models_in(type_argument)
