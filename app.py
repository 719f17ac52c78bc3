"""`python app.py` starts Toolway with the settings of the environment and .env, like `toolway serve`."""

import sys

from toolway.app.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
