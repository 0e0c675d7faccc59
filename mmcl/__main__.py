"""`python -m mmcl` is `mmcl`."""

import sys

from mmcl.cli import main

if __name__ == "__main__":
    sys.exit(main())
