"""``cryofire``: collects the verbs and turns every foreseen error into a message."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType

from cryofire.errors import CryofireError
from cryofire.version import __version__

VERBS = {
    "simulate": "write a simulated particle set with its truth",
    "check": "say what is in a particle table, what is wrong, how long it will take",
    "prepare": "read, check and whiten the images alone; reconstruct continues from there",
    "reconstruct": "find poses, states and maps from particles",
    "encode": "find poses and states of particles that a run has not seen",
    "decode": "write maps at points of the latent space",
    "evaluate": "score a run against the truth",
    "export": "write poses and states for RELION or cryoSPARC",
    "report": "write the report of a run again",
}
DESCRIPTION = "Ab initio heterogeneous cryo-EM reconstruction: particles in, poses, states and maps out."
INTERRUPTED = 130
CONTINUES = {
    "reconstruct": " The same command continues where it was.",
    "encode": " With --follow, the same command continues where it was.",
    "prepare": " The same command starts the preparation again; nothing has to be deleted.",
}

GPU_FULL = (
    "the memory of the graphics processor is full\n  what to do: free it of other programs, or keep this one from it with "
    "CUDA_VISIBLE_DEVICES= before the command."
)


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 1 failed, 2 unusable input, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(words)
    chosen = parser.parse_args(words)
    if chosen.verb is None:
        parser.print_help()
        return 0
    try:
        return int(_module(chosen.verb).run(chosen))
    except CryofireError as error:
        print(f"cryofire {chosen.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ncryofire {chosen.verb}: stopped.{CONTINUES.get(chosen.verb, '')}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except (MemoryError, RuntimeError) as error:
        print(f"cryofire {chosen.verb}: {_out_of_memory(error)}{CONTINUES.get(chosen.verb, '')}", file=sys.stderr)
        return 1


def _out_of_memory(error: MemoryError | RuntimeError) -> str:
    """What to do about it; any other error goes on its way."""
    if isinstance(error, MemoryError):
        return "out of memory\n  what to do: try a smaller --box."
    if type(error).__name__ == "OutOfMemoryError":  # that of torch, which is not imported for a message
        return GPU_FULL
    raise error


def build_parser(words: list[str]) -> argparse.ArgumentParser:
    """Parser of all verbs; only the verb that is asked for is imported."""
    parser = argparse.ArgumentParser(prog="cryofire", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"cryofire {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary)
        if name == asked:
            _module(name).configure(verb)
    return parser


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"cryofire.cli.{verb}")


if __name__ == "__main__":
    sys.exit(main())
