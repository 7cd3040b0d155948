"""Reading released pickles (answer lists, n-gram frequencies) without running what they may contain."""

import pickle
from collections import defaultdict
from os import PathLike
from typing import Any, BinaryIO, Never

# Released frequency files are defaultdicts; the builtins are their possible default factories, and `set` is
# itself a name to old protocols. Python 2 knew the builtins by another module name.
_FACTORIES = (float, int, list, dict, set)
_ALLOWED: dict[tuple[str, str], type] = {
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "long"): int,
    **{(module, cls.__name__): cls for module in ("builtins", "__builtin__") for cls in _FACTORIES},
}


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle asked for something other than plain containers, numbers and strings."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: str | PathLike[str]) -> None:
        super().__init__(file, encoding="latin-1")
        self._path = path

    def find_class(self, module: str, name: str) -> type:
        # Answered from the table alone: nothing that a file names is ever imported or looked up.
        if (module, name) not in _ALLOWED:
            raise UnsafePickleError(
                f"{self._path}: refused, the pickle asks for '{module}.{name}'; "
                "only plain containers, numbers and strings are read"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Never:
        raise UnsafePickleError(f"{self._path}: refused, the pickle asks for a persistent object ({pid!r})")


def load(path: str | PathLike[str]) -> Any:
    """Unpickle a file that holds plain containers, numbers and strings only.

    Python 2 files are read as latin-1. `collections.defaultdict` is let through with a builtin number or
    container as its factory. This guards against code in a file, not against one made to fill the memory.

    Raises:
        UnsafePickleError: the file asks for any other class or function, named in the message.
        pickle.UnpicklingError: the file is truncated or no pickle.
        OSError: the file can't be opened.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, path).load()
        except UnsafePickleError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way: EOFError, KeyError, TypeError, ...
            raise pickle.UnpicklingError(
                f"{path}: not a complete pickle ({type(error).__name__}: {error})"
            ) from error
