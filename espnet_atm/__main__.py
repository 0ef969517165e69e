"""Run an ESPnet module with the extension installed.

``python -m espnet_atm -m espnet2.bin.ssl_train --config ...`` behaves as
``python -m espnet2.bin.ssl_train --config ...`` does, and understands ``ssl_conf``.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

USAGE = "usage: python -m espnet_atm -m MODULE [argument ...]"


def uses_a_task(module: str) -> bool:
    """Whether ``module`` trains or loads models, as far as its source says.

    The others (tokenizers, statistics, launchers) must not pay the 10 seconds that
    importing ESPnet's tasks takes: a recipe starts dozens of them.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        sys.exit(f"python -m espnet_atm: no module named {module!r}")
    return (
        spec.origin is not None
        and spec.origin.endswith(".py")
        and "espnet2.tasks" in Path(spec.origin).read_text(encoding="utf-8")
    )


def main() -> None:
    """Install the extension if the named module needs it, then run the module."""
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit(USAGE)
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    if uses_a_task(module):
        from espnet_atm import task, transducer

        task.install()
        transducer.install()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
