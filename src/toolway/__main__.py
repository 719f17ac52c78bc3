"""`python -m toolway`: the command line."""

from toolway.app.cli import main

if __name__ == "__main__":
    main()
