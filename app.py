"""`python app.py` starts Toolway with the settings of the environment and .env, like `toolway serve`."""

import sys

try:
    from toolway.app.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed for {sys.executable}. In this folder, run `make install` and then "
        "`.venv/bin/python app.py`, or `pip install .` for this Python."
    )

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
