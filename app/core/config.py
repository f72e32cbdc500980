"""Settings from environment variables, and what is wrong with them, all at once.

Each module declares its own `Settings` class with `variable()` fields; `load` reads any number of them. A
variable may have two published names (`SB_SWEEP_WRAPS_INTERVAL`, `SB_WORKER_WRAPS_EXPIRED_INTERVAL`): either is
read, both set to different values is an error. An empty value means unset. A secret may also come from a file named
by `<NAME>_FILE`. No message made here contains a value.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.core.errors import ConfigError

#: Variables with these prefixes are ours alone: one that nobody declares is a slip of the pen.
OWN_PREFIXES = ("SB_SWEEP_", "SB_WORKER_", "SB_NOTIFICATION_", "SB_DISCOVER_", "SB_KMS_")
_FILE = "_FILE"


def variable(*names: str, meaning: str, default: Any = PydanticUndefined, secret: bool = False) -> Any:
    """Declare a setting: its published names (the first is the one to document), its default as an operator
    would write it, and one sentence for `sb-worker config`. Without a default the variable is required.
    """  # noqa: D205
    extra: dict[str, Any] = {"names": names, "secret": secret}
    return Field(default=default, description=meaning, json_schema_extra=extra, validate_default=True)


@dataclass(frozen=True)
class _Problem:
    """Stands in for a value that could not be read, so that pydantic reports it with all the others."""

    text: str


class Found(NamedTuple):
    """A variable that is set: the name it was found under and its text or what is wrong with it."""

    name: str
    value: str | _Problem


class _Environment(PydanticBaseSettingsSource):
    """The only source of settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        found = _find(field, os.environ)
        return (found.value if found else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        values = {name: _find(field, os.environ) for name, field in fields.items()}
        return {name: found.value for name, found in values.items() if found}


class Settings(BaseSettings):
    """Base of all settings: frozen, from the environment only, silent about the values it refuses."""

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, and arguments where code makes settings: no .env files, no secrets directory."""
        del env_settings, dotenv_settings, file_secret_settings
        return (init_settings, _Environment(settings_cls))

    @field_validator("*", mode="before")
    @classmethod
    def _report(cls, value: object) -> object:
        if isinstance(value, _Problem):
            raise ValueError(value.text)  # noqa: TRY004 - pydantic turns ValueError into a reported problem
        return value

    @classmethod
    def read(cls) -> Self:
        """Read this group alone; raises ConfigError."""
        (settings,) = load(cls)
        return settings


S = TypeVar("S", bound=Settings)


def load(*groups: type[S]) -> list[S]:
    """Read every group, in order. Raises ConfigError with one `NAME: what is wrong` line for each problem."""
    found, problems = attempt(*groups)
    if problems:
        raise ConfigError(problems)
    return [one for one in found if one is not None]


def attempt(*groups: type[S]) -> tuple[list[S | None], list[str]]:
    """Read every group, in order: None for one with problems, and all problems, for checks across groups."""
    found: list[S | None] = []
    problems: list[str] = []
    for group in groups:
        try:
            found.append(group())
        except ValidationError as error:
            found.append(None)
            problems += _problems(group, error)
    return found, list(dict.fromkeys(problems))


class Row(NamedTuple):
    """One variable as `sb-worker config` shows it."""

    name: str
    value: str
    source: str
    default: str
    meaning: str
    twins: tuple[str, ...]


def rows(*groups: type[Settings]) -> Iterator[Row]:
    """Describe every variable of these groups once; a secret's value is the word `set`."""
    told: set[tuple[str, ...]] = set()
    for group in groups:
        for field in group.model_fields.values():
            if (names := _names(field)) not in told:
                told.add(names)
                yield _row(field)


def unknown(*groups: type[Settings]) -> list[str]:
    """Say which variables with our prefixes nobody reads, each with the name that may have been meant."""
    known = {name for group in groups for field in group.model_fields.values() for name in _names(field)}
    strays = [
        name for name in sorted(os.environ) if name.startswith(OWN_PREFIXES) and name.removesuffix(_FILE) not in known
    ]
    return [name + _hint(name, known) for name in strays]


def name_of(group: type[Settings], field: str) -> str:
    """Give the documented name of a field's variable."""
    return _names(group.model_fields[field])[0]


def _row(field: FieldInfo) -> Row:
    name, *twins = _names(field)
    found = _find(field, os.environ)
    default = "required" if field.is_required() else _shown(field.default)
    if found is None:
        value, source = ("" if field.is_required() else default), "default"
    else:
        secret = _is_secret(field) or isinstance(found.value, _Problem)
        value, source = ("set" if secret else str(found.value)), found.name
    return Row(name, value, source, default, field.description or "", tuple(twins))


def _problems(group: type[Settings], error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = group.model_fields.get(str(item["loc"][0])) if item["loc"] else None
        text = "required, but not set" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
        if field is None:  # a check across fields names its variables itself
            yield from text.splitlines()
            continue
        found = _find(field, os.environ)
        for line in text.splitlines():
            yield f"{found.name if found else _names(field)[0]}: {line}"


def _find(field: FieldInfo, environ: Mapping[str, str]) -> Found | None:
    set_names = [name for name in _names(field) if environ.get(name)]
    if _is_secret(field):
        set_names += [name + _FILE for name in _names(field) if environ.get(name + _FILE)]
    if not set_names:
        return None
    first, *others = set_names
    value = _value(first, environ)
    for other in others:
        if not _same(field, value, _value(other, environ)):
            return Found(first, _Problem(f"set together with {other}, to different values; set one of them"))
    return Found(first, value)


def _value(name: str, environ: Mapping[str, str]) -> str | _Problem:
    if not name.endswith(_FILE):
        return environ[name]
    try:
        return Path(environ[name]).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        return _Problem("names a file that cannot be read; accepted: the path of a readable UTF-8 text file")


def _same(field: FieldInfo, one: object, other: object) -> bool:
    """Compare as values where both are valid (`60s` is `1m`), else as texts."""
    if one == other:
        return True
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return bool(adapter.validate_python(one) == adapter.validate_python(other))
    except ValidationError:
        return False


def _names(field: FieldInfo) -> tuple[str, ...]:
    extra = field.json_schema_extra
    return tuple(extra["names"]) if isinstance(extra, dict) else ()  # type: ignore[arg-type]


def _is_secret(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra["secret"])


def _shown(default: object) -> str:
    return "unset" if default is None else str(default)


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
