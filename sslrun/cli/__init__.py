"""The command line: the Typer app, and launching Hydra. torch is not imported here."""
