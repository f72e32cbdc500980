"""AWS's shared files: `config` and `credentials`, with a profile in each section.

As in https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html. A file that cannot be read is an empty one, as
for AWS's own clients. No message made here has a line of a file in it.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path

from app.core.bounded_input import content
from app.core.errors import UnwrapFailed

_KEYS = ("aws_access_key_id", "aws_secret_access_key")
#: What stands before the first section counts for nothing.
_BEFORE = "\0"
_TOKEN = "aws_session_token"  # noqa: S105 - a key's name

Section = Mapping[str, str]


class Profiles:
    """What the shared files say, as they are now."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises UnwrapFailed for a file that is none of AWS's form."""
        home = environ.get("HOME", "")
        folder = Path(home) / ".aws" if home else None
        config = _read("AWS_CONFIG_FILE", environ.get("AWS_CONFIG_FILE") or (folder and folder / "config"))
        secret = _read(
            "AWS_SHARED_CREDENTIALS_FILE",
            environ.get("AWS_SHARED_CREDENTIALS_FILE") or (folder and folder / "credentials"),
        )
        profiles = {_name(title): dict(section) for title, section in config.items() if _name(title)}
        for title, section in secret.items():
            own = profiles.setdefault(title, {})
            if section.keys() >= set(_KEYS):
                own.pop(_TOKEN, None)  # of another access key
            own.update(section)
        self._profiles = profiles
        self._services = {
            title.split(maxsplit=1)[1]: section for title, section in config.items() if title.startswith("services ")
        }
        self._named = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or ""

    def chosen(self) -> Section:
        """Return the profile that AWS_PROFILE names, or `default`, empty when nobody made one. Raises UnwrapFailed."""
        if not self._named and "default" not in self._profiles:
            return {}
        return self.named(self._named or "default", "AWS_PROFILE")

    def named(self, name: str, by: str) -> Section:
        """Return a profile; `by` names it. Raises UnwrapFailed when it is missing, or has half an access key."""
        section = self._profiles.get(name)
        if section is None:
            raise UnwrapFailed(
                f"aws profile: {by} names one that is in neither AWS_CONFIG_FILE nor the credentials file"
            )
        if len([key for key in _KEYS if section.get(key)]) == 1:
            raise UnwrapFailed(f"aws profile: {' and '.join(_KEYS)} must both be in it")
        return section

    def service(self, profile: Section, service: str) -> Section:
        """Return what a profile's `services` section says of a service."""
        text = self._services.get(profile.get("services", ""), {}).get(service, "")
        pairs = (line.partition("=") for line in text.splitlines())
        return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _name(title: str) -> str:
    """Return the profile that a section of the file `config` is of, empty for a section of another kind."""
    words = title.split(maxsplit=1)
    if len(words) == 2 and words[0] == "profile":  # noqa: PLR2004 - the word and the name
        return words[1]
    return "default" if words == ["default"] else ""


def _read(variable: str, path: str | Path | None) -> dict[str, Section]:
    if not path:
        return {}
    parser = configparser.ConfigParser(
        default_section="",  # a section of any name is a profile and no more
        interpolation=None,
        strict=False,
        allow_no_value=True,
        empty_lines_in_values=False,
        inline_comment_prefixes=("#", ";"),
    )
    try:
        text = content(Path(path).expanduser()).decode(errors="replace").lstrip("\ufeff")
        parser.read_string(f"[{_BEFORE}]\n{text}")
    except OSError:
        return {}
    except Exception:  # noqa: BLE001 - its text has the line in it, which may be a secret
        raise UnwrapFailed(
            f"aws profile: the file of {variable} is not in AWS's form of sections and key = value"
        ) from None
    return {
        title.strip(): {key: (value or "").strip() for key, value in parser[title].items()}
        for title in parser.sections()
    }
