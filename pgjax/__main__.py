"""`python -m pgjax` is the `pgjax` command."""

import sys

from pgjax.experiment.cli import main

if __name__ == "__main__":
    sys.exit(main())
