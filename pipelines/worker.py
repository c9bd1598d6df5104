"""The process that the local runner starts for each of `--workers`: Beam's, saying less. Imports logs, quiet, beam."""

from __future__ import annotations

import logging
import sys

from pipelines import logs
from pipelines.quiet import quiet


def main() -> None:
    logs.configure()
    quiet()
    logging.getLogger().setLevel(logging.ERROR)  # as in cli
    from apache_beam.runners.worker import sdk_worker_main

    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)  # a folder is missing that none needs
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
