"""`python -m pipeline.cli`, the same as `repro`."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
