"""`python -m rtsmap`: the same as the `rtsmap` script."""

from rtsmap.cli.main import run

if __name__ == "__main__":
    run()
