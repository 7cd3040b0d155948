"""Prints the released instructions, a line each."""

from .released import RELEASED


def main() -> None:
    width = max(map(len, RELEASED))
    for name, line in RELEASED.items():
        print(f"{name:{width}}  {line}")


if __name__ == "__main__":
    main()
