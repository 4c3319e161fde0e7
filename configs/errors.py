"""What a mistake of the user is raised as; light, so that every command may import it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in a config or command line: the message names the file and line or the option, the
    field and the fix. Ends a command with status 2.
    """
