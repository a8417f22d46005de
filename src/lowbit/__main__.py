"""`python -m lowbit`."""

from lowbit.cli import main

if __name__ == "__main__":
    main()
