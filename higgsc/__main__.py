"""`python -m higgsc`, for launchers that start a module rather than a command."""

from higgsc.cli import main

if __name__ == "__main__":
    main()
