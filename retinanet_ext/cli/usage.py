"""How verbs report a mistake of the user."""

import argparse
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


class VerbParser(argparse.ArgumentParser):
    """Reports an unknown flag with its own usage: argparse alone would print the usage of the whole command."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        unknown = self.take_words(namespace, unknown)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def take_words(self, namespace: argparse.Namespace, words: list[str]) -> list[str]:
        """Put those of the words that argparse could not place where they belong; return the others."""
        return words
