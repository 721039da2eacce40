"""`python -m flatnb` is `flatnb`."""

import sys

from flatnb.book.cli import main

if __name__ == "__main__":
    sys.exit(main())
