"""`python -m embedx`."""

from embedx.cli.main import main

if __name__ == "__main__":
    main()
