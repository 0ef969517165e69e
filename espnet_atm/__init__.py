"""Ask2Mask: guided masking for self-supervised speech models in ESPnet."""

import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Optional

__version__ = "0.1.0"

# The releases that were tested; tools/setup.sh installs the first. The second passes
# tests/test_other_espnet.py. The one before, 202609, wants Lightning, Dask and an older
# setuptools, and was not tried.
ESPNET = ("202611", "202610")


def wrong_espnet() -> Optional[str]:
    """What to say of the ESPnet that Python finds, unless it is a tested release.

    Looks at files only: importing another release may fail in any way. A checkout's
    version is the one in its folder, whatever is installed besides.
    """
    spec = importlib.util.find_spec("espnet2")
    if spec is None:
        return (
            "ESPnet is not installed: tools/setup.sh installs it, or pip install "
            f"espnet=={ESPNET[0]}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).parent
    found = [
        file.read_text(encoding="utf-8", errors="replace").strip()
        for folder in ("", "espnet", "espnet2")
        for file in [root / folder / "version.txt"]
        if file.is_file()
    ]
    found += [x.name.split("-")[1] for x in root.glob("espnet-*.*-info")]
    found = [re.sub(r"(\.dist|\.egg)$", "", x) for x in found]
    if not found or found[0] == os.environ.get("ATM_ESPNET"):
        return None
    if re.split(r"[^0-9]", found[0])[0] in ESPNET:  # 202610.post2 too
        return None
    return (
        f"espnet_atm was tested with ESPnet {' and '.join(ESPNET)}, and Python finds "
        f"{found[0]} in {root}: pip install espnet=={ESPNET[0]}, take the other off "
        f"PYTHONPATH (or ESPNET_ROOT), or try it by setting ATM_ESPNET={found[0]}"
    )


_wrong = wrong_espnet()
if _wrong and sys.argv[:1] == ["-m"]:  # a command's package, before its own imports
    sys.exit(f"espnet_atm: error: {_wrong}")
elif _wrong:
    warnings.warn(_wrong, stacklevel=2)
