"""Settings from environment variables, with all of their problems reported at once.

Each module declares its own `Settings` class with `variable()` fields; `load` reads any number of them. A
variable may have two published names (`SB_SWEEP_WRAPS_INTERVAL`, `SB_WORKER_WRAPS_EXPIRED_INTERVAL`): either is
read, both set to different values is an error. An empty value means unset. A secret may also come from a file named
by `<NAME>_FILE`. No message made here contains a value.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.core.bounded_input import content
from app.core.errors import ConfigError, raised_at
from app.core.jsonb import fit
from app.core.values import has_login, remarks

#: Variables with these prefixes are ours alone: one that no group declares is misspelt.
OWN_PREFIXES = ("SB_SWEEP_", "SB_WORKER_", "SB_NOTIFICATION_", "SB_DISCOVER_", "SB_KMS_", "SB_EGRESS_")
_FILE = "_FILE"
_OWN = ("app", "actors", "sinks")
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_NOT_VALID = "not valid; accepted: what docs/configuration.md says of it"


class Variable(NamedTuple):
    """What is published of a setting: `names`, the documented one first, the default as text, and the meaning.

    A `secret` may come from a file, and its value is never shown. `default` is the same on every machine.
    """

    names: tuple[str, ...]
    default: str
    meaning: str
    secret: bool


def variable(
    *names: str, meaning: str, default: Any = PydanticUndefined, secret: bool = False, documented: str = ""
) -> Any:
    """Declare a setting: its published names, the first of which is documented, and one sentence about it.

    `default` is what an operator would write; without one the variable is required. `documented` describes a default
    that depends on the machine.
    """
    extra: Any = {"variable": Variable(names, documented or _shown(default), meaning, secret)}
    return Field(default=default, json_schema_extra=extra, validate_default=True)


@dataclass(frozen=True)
class _Problem:
    """Stands in for a value that could not be read, so that pydantic reports it with all the others."""

    text: str


class _Assigned(NamedTuple):
    """A variable that is set: the name that is set, and its text or what is wrong with it."""

    name: str
    value: str | _Problem


class _Environment(PydanticBaseSettingsSource):
    """The only source of settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        assigned = _assigned(field)
        return (assigned.value if assigned else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        return {name: assigned.value for name, field in fields.items() if (assigned := _assigned(field))}


class Settings(BaseSettings):
    """Base of all settings: frozen, from the environment only, silent about the values it refuses."""

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True, extra="forbid")

    _current: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources: the environment, and arguments in code. No .env files, no secrets directory."""
        del env_settings, dotenv_settings, file_secret_settings
        return (init_settings, _Environment(settings_cls))

    @field_validator("*", mode="wrap")
    @classmethod
    def _report(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """Turn whatever a validator raises into a problem: the standard library's parsers raise any class."""
        if isinstance(value, _Problem):
            raise ValueError(value.text)  # noqa: TRY004 - pydantic turns ValueError into a reported problem
        try:
            return validate(value)
        except (ValueError, AssertionError):
            raise
        except Exception:  # noqa: BLE001 - a foreign text may quote the value
            raise ValueError(_NOT_VALID) from None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is accepted and still worth a line at boot, without a value: what was taken as another one."""
        return tuple(_remarks(type(self)))

    def current(self, field: str) -> Any:
        """Return a setting as it is now: read anew when it comes from a file, which may be replaced at any time.

        What is not valid, or not there, in the middle of being written say, leaves the last good value.
        """
        info = type(self).model_fields[field]
        assigned = _assigned(info)
        if assigned is not None and assigned.name.endswith(_FILE) and not isinstance(assigned.value, _Problem):
            with suppress(Exception):  # a validator may raise anything
                self._current[field] = _adapter(info).validate_python(assigned.value)
        return self._current.get(field, getattr(self, field))

    @classmethod
    def read(cls) -> Self:
        """Read this group alone. Raises ConfigError."""
        (settings,) = load(cls)
        return settings


S = TypeVar("S", bound=Settings)


def load(*groups: type[S]) -> list[S]:
    """Read every group, in order. Raises ConfigError with one `NAME: what is wrong` line for each problem."""
    loaded, problems = attempt(*groups)
    if problems:
        raise ConfigError(problems)
    return [settings for settings in loaded if settings is not None]


def attempt(*groups: type[S]) -> tuple[list[S | None], list[str]]:
    """Read every group, in order. Return None in place of one with problems, and the problems of all.

    For checks across groups, whose problems are to be reported together with these.
    """
    loaded: list[S | None] = []
    problems: list[str] = []
    for group in groups:
        try:
            loaded.append(group())
        except ValidationError as error:
            loaded.append(None)
            problems += _problems(group, error)
        except Exception:  # noqa: BLE001 - of a check across fields; a foreign text may quote a value
            loaded.append(None)
            problems.append(f"{', '.join(variable.names[0] for variable in variables(group))}: not valid together")
    return loaded, list(dict.fromkeys(problems))


class Row(NamedTuple):
    """One variable as `sb-worker config` shows it."""

    name: str
    value: str
    source: str
    default: str
    meaning: str
    twins: tuple[str, ...]


def variables(*groups: type[Settings]) -> list[Variable]:
    """Return what is published of these groups' settings, each once; nothing of it depends on the environment."""
    return list(dict.fromkeys(_variable(field) for field in _fields(groups)))


def rows(*groups: type[Settings]) -> Iterator[Row]:
    """Yield each variable of these groups once, with its value; a secret's is the word `set`."""
    return map(_row, {_variable(field): field for field in _fields(groups)}.values())


def unknown(*groups: type[Settings]) -> list[str]:
    """Return the variables with our prefixes that no group reads, each with the name that may have been meant."""
    published = variables(*groups)
    known = [name for variable in published for name in variable.names]
    read = {*known, *(name + _FILE for variable in published if variable.secret for name in variable.names)}
    strays = [name for name in sorted(os.environ) if name.startswith(OWN_PREFIXES) and name not in read]
    return [name + _hint(name, known) for name in strays]


def names_of(group: type[Settings], field: str) -> tuple[str, ...]:
    """Return the published names of a field's variable; none where a subclass is to give them."""
    return _variable(group.model_fields[field]).names


def rename(group: type[Settings], field: str, name: str) -> None:
    """Publish a field that is declared once, for many groups, under a name of this group's own."""
    info = copy(group.model_fields[field])
    extra: Any = {"variable": _variable(info)._replace(names=(name,))}
    info.json_schema_extra = extra
    group.model_fields[field] = info


def name_of(group: type[Settings], field: str) -> str:
    """Return the name under which a field's variable is set; the documented one while it is not."""
    return _name(group.model_fields[field])


def _name(field: FieldInfo) -> str:
    assigned = _assigned(field)
    return assigned.name if assigned else _variable(field).names[0]


def _fields(groups: Iterable[type[Settings]]) -> Iterator[FieldInfo]:
    for group in groups:
        yield from group.model_fields.values()


def _row(field: FieldInfo) -> Row:
    published, assigned = _variable(field), _assigned(field)
    name, *twins = published.names
    default = _shown(field.default)
    if assigned is None:
        value, source = ("" if field.is_required() else default), "default"
    else:
        value, source = ("set" if published.secret else _valid(field, assigned.value)), assigned.name
    return Row(name, value, source, default, published.meaning, tuple(twins))


def _valid(field: FieldInfo, value: str | _Problem) -> str:
    """Return a text to show; not one that is refused, since it may be a secret that ended up under the wrong name."""
    return "not valid" if _says(field, value) != [] else str(value)


def _remarks(group: type[Settings]) -> Iterator[str]:
    """Yield what is said about values that are taken as others, after the names that are set."""
    for field in group.model_fields.values():
        if (assigned := _assigned(field)) is not None:
            yield from (f"{assigned.name}: {text}" for text in _says(field, assigned.value) or ())


def _says(field: FieldInfo, value: str | _Problem) -> list[str] | None:
    """Return what is said about a value, None about one that is refused."""
    with remarks() as said:
        try:
            _adapter(field).validate_python(value)
        except Exception:  # noqa: BLE001 - a validator may raise anything
            return None
    return said


def _problems(group: type[Settings], error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_input=False):
        field = group.model_fields.get(str(item["loc"][0])) if item["loc"] else None
        text = "required, but not set" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
        if field is None:  # a check across fields names its variables itself
            yield from text.splitlines()
            continue
        assigned = _assigned(field)
        quoted = assigned is not None and repr(assigned.value) in text  # as Python's own parsers do
        if quoted or _foreign((item.get("ctx") or {}).get("error")):
            text = _NOT_VALID
        for line in text.splitlines():
            yield f"{_name(field)}: {line}"


def _foreign(error: object) -> bool:
    """Return whether a library raised this error: its text may quote the value, or a part of it."""
    trace = raised_at(error.__traceback__ if isinstance(error, Exception) else None)
    if trace is None or isinstance(error, UnicodeError):
        return trace is not None
    frame = trace.tb_frame
    own = str(frame.f_globals.get("__name__")).partition(".")[0] in _OWN
    return frame.f_code.co_filename.startswith(_LIBRARIES) and not own


def _assigned(field: FieldInfo) -> _Assigned | None:
    """Return the value that is set, also when under several names; None when there is none."""
    names, _, _, secret = _variable(field)
    if not secret and any(has_login(os.environ.get(name, "")) for name in names):
        name = next(name for name in names if os.environ.get(name))
        return _Assigned(name, _Problem("has a user or a password in its URL, which would be shown; set it without"))
    candidates = [name + ending for name in names for ending in (("", _FILE) if secret else ("",))]
    assigned = [_Assigned(name, _value(name)) for name in candidates if os.environ.get(name)]
    for other in assigned[1:]:
        if not _same(field, assigned[0].value, other.value):
            text = f"set together with {other.name}, to different values; set one of them"
            return _Assigned(assigned[0].name, _Problem(text))
    return assigned[0] if assigned else None


def _value(name: str) -> str | _Problem:
    try:
        text = os.environ[name]
        if name.endswith(_FILE):
            text = content(text).decode().replace("\r\n", "\n").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        return _Problem("names a file that cannot be read; accepted: the path of a readable UTF-8 text file")
    if fit(text) != text:  # of bytes that are no text Python makes halves of surrogate pairs
        return _Problem("not a text; accepted: UTF-8, without NUL")
    return text


def _same(field: FieldInfo, value: object, other: object) -> bool:
    """Return whether two values are equal (`60s` is `1m`), or two texts when they are not valid."""
    if value == other:
        return True
    adapter = _adapter(field)
    try:
        return bool(adapter.validate_python(value) == adapter.validate_python(other))
    except Exception:  # noqa: BLE001 - a validator may raise anything
        return False


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(annotation)


def _variable(field: FieldInfo) -> Variable:
    extra: Any = field.json_schema_extra
    published: Variable = extra["variable"] if extra else Variable((), "", "", secret=False)
    return published


def _shown(default: object) -> str:
    return "required" if default is PydanticUndefined else "unset" if default is None else str(default)


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
