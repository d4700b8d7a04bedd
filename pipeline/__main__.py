"""`python -m edgebuild.pipeline` is `edgebuild`."""

from edgebuild.pipeline.cli import main

main()
