"""What a Flex Template's launcher runs: template parameters to the command line of a stage. Imports pipelines.cli.

Parameters come as `--name=value`, by the names in the metadata: with `_` for our `-`, and `true` or `false` for
options without a value. All others are the launcher's own, for Beam (which job, where, `--template_location`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def command_line(command: str, arguments: list[str]) -> list[str]:
    """The arguments of `tokzip` for a stage ("compress" or "embed") from those of the launcher."""
    metadata = json.loads(Path(__file__).with_name(f"{command}.json").read_text())
    kinds = {p["name"]: p.get("paramType") for p in metadata["parameters"]}
    ours, beam = [], []
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        option = f"--{name.replace('_', '-')}"
        if name not in kinds or name == "sdk_container_image":
            beam.append(argument)
        elif kinds[name] == "BOOLEAN":
            ours += [option] if value.lower() == "true" else []
        else:
            ours.append(f"{option}={value}")
    return [command, *ours, "--", "--runner=DataflowRunner", *beam]


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(command_line(os.environ["TOKZIP_COMMAND"], sys.argv[1:])))
