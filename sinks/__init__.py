"""The notification sinks, one module each, and the list of them: a new one is one file and one line."""

from sinks import noop

SINKS = (noop.noop,)
