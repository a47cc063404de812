"""`python tests/mutants`: lets the modules beside this one find each other, and runs the command."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
runpy.run_module("mutants.sample", run_name="__main__")
