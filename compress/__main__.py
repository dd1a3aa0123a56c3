"""``python -m compress``: the same command under a name that no old Unix tool has."""

from compress.cli import main

if __name__ == "__main__":
    main()
