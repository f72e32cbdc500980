"""Canaries: texts that stand in for secrets and rows, each under a name that says where it was planted."""

from __future__ import annotations

import secrets
import string

LENGTH = 24
_LETTERS = string.ascii_lowercase + string.digits


class Canaries(dict[str, str]):
    """Their texts by their names; one that is asked for and not there is made.

    Lower-case letters and digits only: fit for a host's name, a role, a token, a path and a header, and the same in
    each of them. What odd letters do to what is around them is the planting's affair.
    """

    def __missing__(self, name: str) -> str:
        return self.of_length(name, LENGTH)

    def of_length(self, name: str, length: int) -> str:
        """Return a canary of this many letters, at least `LENGTH`, for what takes no other number."""
        if name not in self:
            rest = (secrets.choice(_LETTERS) for _ in range(length - 1))
            self[name] = secrets.choice(string.ascii_lowercase) + "".join(rest)
        return self[name]
