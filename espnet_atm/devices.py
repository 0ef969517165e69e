"""Where a job computes: on the CPU, or on one of a machine's GPUs."""

import argparse

from espnet_atm.values import MOST_CODES, whole


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """``--ngpu`` and ``--job``."""
    parser.add_argument("--ngpu", type=int, default=0, help="0: CPU, 1: GPU")
    parser.add_argument(
        "--job",
        type=int,
        default=1,
        help="number of this one, from 1, of several on a machine, whose GPUs they take "
        "in turn",
    )


def device_of(args: argparse.Namespace) -> str:
    """Where to compute: of several GPUs, on the one whose turn it is.

    Raises:
        UserError: on numbers of GPUs and jobs that are none.
    """
    whole("ngpu", args.ngpu, least=0, most=MOST_CODES)
    whole("job", args.job, most=MOST_CODES)
    import torch  # slow

    if not args.ngpu:
        return "cpu"
    return f"cuda:{(args.job - 1) % max(torch.cuda.device_count(), 1)}"
