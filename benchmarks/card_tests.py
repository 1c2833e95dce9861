"""Run every test that needs a graphics card, and write down what they said, where, and of which commit.

PYTHONPATH=src python benchmarks/card_tests.py benchmarks/results/CARD-tests.json [--commit HASH]
"""

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from polybit.bench.report import source_commit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--commit", default=source_commit())
    parser.add_argument("tests", nargs="*", default=["tests"])
    args = parser.parse_args()
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", *args.tests]
        code = subprocess.run(command, check=False).returncode
        suite = ElementTree.parse(report).getroot()[0].attrib
    found = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    said = {"commit": args.commit, "cards": cards, "torch": torch.__version__, "exit": code}
    args.result.write_text(json.dumps(said | found | {"seconds": round(time.monotonic() - started)}, indent=1) + "\n")
    print(args.result.read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
