"""From files to one spec: `extends`, sites, `--set`, sweeps, and where every value came from."""
