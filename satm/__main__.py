"""`python -m satm`."""

import sys

from satm.run.log import close_log, open_log

if __name__ == "__main__":
    open_log()
    from satm.cli import main  # after the log is open, so that an error of this import is in it

    code = main()
    close_log()
    sys.exit(code)
