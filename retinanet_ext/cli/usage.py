"""How verbs report a mistake of the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """A mistake in the arguments of a verb, or in what they point to; `main` shows it without a traceback."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the errors that the package raises for bad input into UsageError. Wrap set-up only, not the work itself."""
    try:
        yield
    except KeyError as error:
        raise UsageError(error.args[0] if error.args else error) from error
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(error) from error
