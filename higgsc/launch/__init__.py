"""A built directory to running jobs, one launcher a target."""
