"""`python -m app` is `ternaus`."""

from app.cli import main

if __name__ == "__main__":
    main()
