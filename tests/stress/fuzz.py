"""Try odd campaigns, files, images or sequences of commands at length; `tests/test_fuzz.py` tries a few of each.

    python tests/stress/fuzz.py configs --count 5000 --seed 1
    python tests/stress/fuzz.py files --count 2000 --seed 1
    python tests/stress/fuzz.py images --count 500 --seed 1
    python tests/stress/fuzz.py sequences --count 300 --seed 1

It prints what the cases came to, and each that went wrong with the command that repeats it; then it ends with 1. All
error messages that were met are written into one file, the most frequent first, to be read as their receivers do.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from forks import forks
from fuzz_configs import check_config, configs
from fuzz_files import Case, Goldens, cases, check_file, parse_case
from fuzz_images import CASES, check_images
from fuzz_sequences import Sequences, Step, sequences
from fuzzing import MET, Tally, Wrong, bounded, quick, tally

KEPT = Path(__file__).parent.parent.parent / "build" / "fuzz"
"""Default folder for campaigns that went wrong."""


def try_configs(base: Path, count: int, seed: int, kept: Path, check: Callable[[bytes, Path], str]) -> Tally:
    """Try a number of campaigns; keep those that went wrong in a folder."""

    def failed(raw: bytes, text: str) -> None:
        kept.mkdir(parents=True, exist_ok=True)
        path = kept / f"seed-{seed}-{len(list(kept.iterdir()))}.yaml"
        path.write_bytes(raw)
        _tell(text, f"configs --case {path}")

    return tally(configs(), lambda raw: check(raw, base), count, seed, failed)


def try_files(base: Path, count: int, seed: int) -> Tally:
    """Try a number of damaged files."""
    goldens = Goldens(base)

    def failed(case: Case, text: str) -> None:
        _tell(text, f"files --case {shlex.quote(str(case))}")

    return tally(cases(goldens), lambda case: check_file(case, goldens), count, seed, failed)


def try_sequences(base: Path, count: int, seed: int) -> Tally:
    """Try a number of sequences of commands."""
    with forks(base) as served:
        tried = Sequences(base, served)

        def failed(case: tuple[Step, ...], text: str) -> None:
            _tell(text, f"sequences --case {shlex.quote(json.dumps(case))}")

        return tally(sequences(), tried.check, count, seed, failed)


def try_images(base: Path, count: int, seed: int) -> Tally:
    """Try a number of datasets of odd images."""

    def failed(case: int, text: str) -> None:
        _tell(text, f"images --case {case}")

    return tally(CASES, lambda case: check_images(case, base), count, seed, failed)


def _tell(text: str, arguments: str) -> None:
    print(f"WRONG: {text}\n  python tests/stress/fuzz.py {arguments}", flush=True)


def _once(check: Callable[[], str]) -> int:
    try:
        with bounded(), quick():
            print(check())
    except Wrong as error:
        print(f"WRONG: {error}")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None, check: Callable[[bytes, Path], str] = check_config) -> int:
    """Run what the command line asks for; `check` tries a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["configs", "files", "images", "sequences"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--case", help="Repeat one: the file of a campaign, the text of a damage, the number of a dataset."
    )
    parser.add_argument("--kept", type=Path, default=KEPT, help="Folder for campaigns that went wrong.")
    parser.add_argument("--messages", type=Path, default=KEPT / "messages.txt", help="File for all error messages.")
    flags = parser.parse_args(arguments)
    MET.clear()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if flags.case is not None and flags.what == "configs":
            return _once(lambda: check(Path(flags.case).read_bytes(), base))
        if flags.case is not None and flags.what == "sequences":
            with forks(base) as served:
                return _once(lambda: Sequences(base, served).check([tuple(step) for step in json.loads(flags.case)]))
        if flags.case is not None and flags.what == "images":
            return _once(lambda: check_images(int(flags.case), base))
        if flags.case is not None:
            goldens = Goldens(base)
            return _once(lambda: check_file(parse_case(flags.case), goldens))
        begun = time.monotonic()
        print(f"{flags.what}: {flags.count} cases of seed {flags.seed}", flush=True)
        if flags.what == "configs":
            found = try_configs(base, flags.count, flags.seed, flags.kept, check)
        elif flags.what == "sequences":
            found = try_sequences(base, flags.count, flags.seed)
        elif flags.what == "images":
            found = try_images(base, flags.count, flags.seed)
        else:
            found = try_files(base, flags.count, flags.seed)
    for kind, number in sorted(found.kinds.items()):
        print(f"{number:6} {kind}")
    print(f"{sum(found.kinds.values()):6} in all, {len(found.failures)} wrong, {time.monotonic() - begun:.0f} s")
    flags.messages.parent.mkdir(parents=True, exist_ok=True)
    flags.messages.write_text("".join(f"{number:6} {text}" for text, number in MET.most_common()), "utf-8")
    print(f"{len(MET)} messages -> {flags.messages}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
