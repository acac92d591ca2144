"""`python -m vectorshard`: the command line."""

from vectorshard.cli.__main__ import main

if __name__ == "__main__":
    main()
