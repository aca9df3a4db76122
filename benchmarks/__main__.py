"""The command line: ``python -m benchmarks <suite>``."""

from __future__ import annotations

import argparse
from types import ModuleType

from benchmarks import accelerator, augment, compiled, contrastive, harness, memory, norms, optimizers, sharding

SUITES: dict[str, ModuleType] = {
    "optimizers": optimizers,
    "norms": norms,
    "contrastive": contrastive,
    "augment": augment,
    "memory": memory,
    "sharding": sharding,
    "compiled": compiled,
    "accelerator": accelerator,
}


def main(argv: list[str] | None = None) -> None:
    """Runs one suite, prints its tables and writes its record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against peers, side by side.")
    suites = parser.add_subparsers(dest="suite", required=True, metavar="suite")
    for name, module in SUITES.items():
        suite = suites.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if module is not compiled:
            harness.add_arguments(suite)
        module.add_arguments(suite)
    args = parser.parse_args(argv)
    if argv is None:
        harness.start_with(getattr(SUITES[args.suite], "VARIABLES", {}))
    harness.prepare()
    if SUITES[args.suite] is compiled:  # nothing is timed, and the record is written as it goes
        compiled.run(args)
        return
    environment = harness.environment()
    harness.print_environment(environment)
    record = SUITES[args.suite].run(args)
    harness.write(args, {"suite": args.suite, "environment": environment, **record})


if __name__ == "__main__":
    main()
