"""Coverage-guided fuzzing of relayd.stun with atheris, by hand: runs until it finds something or is stopped.

The invariants are those of stun_invariants. atheris is no dependency of the tests; to run it by hand, from the root of
the checkout:

    python -m pip install atheris
    python -m tests.fuzz.stun_target [CORPUS-DIRECTORY] [-max_total_time=SECONDS] [other options of libFuzzer]

The first byte of an input chooses what is fed with the rest. What breaks an invariant is left in a file "crash-...",
which goes into the unit tests as an example once it is understood: `python -m tests.fuzz.stun_target crash-...` runs it
alone.
"""

from __future__ import annotations

import importlib
import sys


def main(arguments: list[str]) -> None:
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("tests.fuzz.stun_target needs atheris, which is not installed: python -m pip install atheris")
    with atheris.instrument_imports(include=["relayd"]):
        invariants = importlib.import_module("tests.fuzz.stun_invariants")

    def feed(data: bytes) -> None:
        choice, rest = data[:1], data[1:]
        if choice < b"\x60":
            invariants.check_message(rest)
        elif choice < b"\x80":
            invariants.check_channel_data(rest)
        else:
            # The next bytes say where the stream is cut.
            invariants.check_stream(rest[4:], list(rest[:4]))

    atheris.Setup(arguments, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
